"""Commands: what a client asks for, checked against the projection and appended. Never waits on delivery."""
