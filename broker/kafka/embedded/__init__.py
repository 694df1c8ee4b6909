"""The embedded Apache Kafka: its jars, Java, its process and its password."""
