"""The removal of what is old, ended or done."""
