"""`everput demo`: its course, its server, its listeners and what it shows."""
