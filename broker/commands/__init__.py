"""Commands of clients: checked against the directory, and then appended to the log. They never wait for deliveries."""
