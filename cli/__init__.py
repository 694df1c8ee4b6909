"""The `everput` command; the only place that wires broker, projections and api together."""
