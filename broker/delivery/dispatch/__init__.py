"""One listener's deliveries, from a message in memory to the answer that settles it."""
