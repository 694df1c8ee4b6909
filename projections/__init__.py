"""State folded from the log by Faust agents; the only importer of faust."""
