"""Reading messages from Kafka, and handing each of them to the listeners of its queue."""
