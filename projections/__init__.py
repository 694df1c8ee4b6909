"""State folded from the log by Faust agents. No other package imports faust."""
