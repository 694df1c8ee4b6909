"""Messages that were updated or deleted: how the worker that owns their partition applies this."""
