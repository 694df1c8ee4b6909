"""Benchmarks: the speed of Everput, as ratios within one run (see README.md). Not for: tests, which never assert
timing.
"""
