"""Requests to listeners: allowed addresses, DNS, connections, requests."""
