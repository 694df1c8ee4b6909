"""Reads Everput's events with a plain Kafka client, without importing Everput.

    pip install confluent-kafka
    python examples/read_topics.py 127.0.0.1:9092 control messages

`everput serve` logs the address of its embedded Kafka; for it, add `--password-file data/kafka/password`.
Each event is one JSON object, documented in docs/events.md. This program prints the existing events and ends. To
follow new events, leave out the break, and use your own group.id to remember the position.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

PREFIX = "everput."


def main(bootstrap: str, *topics: str, password_file: Path | None = None) -> None:
    sasl = {}
    if password_file is not None:
        sasl = {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "SCRAM-SHA-256",
            "sasl.username": "everput",
            "sasl.password": password_file.read_text().strip(),
        }
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            **sasl,
            "group.id": "example",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    partitions = [
        TopicPartition(topic, number, OFFSET_BEGINNING)
        for topic in topics
        for number in consumer.list_topics(topic, timeout=10).topics[topic].partitions
    ]
    consumer.assign(partitions)
    ended = 0
    while ended < len(partitions):
        record = consumer.poll(10)
        if record is None:
            break
        if record.error() is not None:
            if record.error().code() != KafkaError._PARTITION_EOF:
                raise KafkaException(record.error())
            ended += 1
            continue
        if record.value() is None:  # a tombstone: the delivery with this key has ended
            continue
        event = json.loads(record.value())
        at = datetime.fromtimestamp(event["at_ms"] / 1000, UTC)
        about = event.get("message_id") or event.get("listener_id") or event.get("queue_id") or ""
        print(f"{at:%Y-%m-%dT%H:%M:%S}Z {event['type']} {event['actor'] or '-'} {about}")
    consumer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("bootstrap")
    parser.add_argument("topics", nargs="*", default=["control", "messages"])
    parser.add_argument("--password-file", type=Path)
    given = parser.parse_args()
    names = (name if "." in name else PREFIX + name for name in given.topics)
    main(given.bootstrap, *names, password_file=given.password_file)
