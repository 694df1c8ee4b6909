"""The embedded Apache Kafka: its jars, its Java, its process and who may use it."""
