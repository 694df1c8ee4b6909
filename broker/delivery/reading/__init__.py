"""Brings the log's messages to the streams."""
