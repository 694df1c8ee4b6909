"""`everput listen`: a tunnel from the API to an address on this machine."""
