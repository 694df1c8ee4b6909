"""Exports and imports: events and topics as files, and back."""
