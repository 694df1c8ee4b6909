"""What happened is written down, then the cursors are committed."""
