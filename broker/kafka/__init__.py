"""The only package that imports aiokafka: topics, the log, cursors, and the embedded Kafka."""
