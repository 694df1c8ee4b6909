"""The processes of an installation: supervisor, API, worker, and what they have in common."""
