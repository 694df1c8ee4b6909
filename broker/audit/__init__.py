"""Reads the log to answer what happened in the past."""
