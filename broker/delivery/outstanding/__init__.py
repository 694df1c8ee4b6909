"""Deliveries that have left their window: they are retried later, or parked."""
