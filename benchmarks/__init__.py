"""How fast Everput is, as ratios within one run; see README.md here. Not for: tests, which assert no timing."""
