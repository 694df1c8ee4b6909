"""All that goes to a listener's address: which addresses may be used, DNS, connections, requests."""
