"""Everput's decisions, pure: no await, no clock, no randomness, no socket. Time arrives as `at_ms`."""
