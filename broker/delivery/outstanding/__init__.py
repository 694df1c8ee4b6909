"""Deliveries that have left their window: tried again later, or parked."""
