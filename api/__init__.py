"""The REST API: commands in, projections out."""
