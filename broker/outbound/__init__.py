"""HTTP requests to listeners: allowed addresses, DNS, connections, requests."""
