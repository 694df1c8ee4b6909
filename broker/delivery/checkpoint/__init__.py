"""Checkpoints: outcomes are written to Kafka, and then the cursors are committed."""
