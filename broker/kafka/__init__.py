"""The only importer of aiokafka: topics, the log, the cursors, and the embedded Kafka."""
