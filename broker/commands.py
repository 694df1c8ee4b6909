"""Commands: what a client asks for, checked against the projection, appended, and answered when it is folded."""
