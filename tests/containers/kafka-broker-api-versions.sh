#!/bin/sh
# In the place of Kafka's own, whose jar Everput does not need: it asks the broker for something else, and fails alike.
exec /opt/java/bin/java -cp '/opt/kafka/libs/*' -Xmx128m kafka.admin.ConfigCommand "$@" --describe --entity-type brokers
