"""Delivery: reads messages from Kafka, sends them to listeners over HTTP, and retries those that fail."""
