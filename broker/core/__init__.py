"""Everput's decisions as pure functions and classes: no I/O, no clock, no randomness. Callers pass in the time as
`at_ms`.
"""
