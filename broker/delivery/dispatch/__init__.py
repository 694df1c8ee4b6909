"""One listener's deliveries, from a message in memory to the HTTP answer that settles it."""
