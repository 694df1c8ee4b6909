"""Checkpoints: outcomes are written, and then the cursors are committed."""
