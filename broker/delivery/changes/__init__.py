"""Messages that were updated or deleted, as the owner of their partitions honours it."""
