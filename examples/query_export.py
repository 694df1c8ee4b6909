"""Queries an export with DuckDB.

    everput export --format parquet out
    pip install duckdb
    python examples/query_export.py out

It also reads the JSON Lines files of `everput export`. docs/events.md describes the events.
"""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb

# One `deliveries.settled` event holds many first attempts that succeeded. Make a row of each.
ATTEMPTS = """
    SELECT event->>'listener_id' AS listener, 'delivered' AS outcome, CAST(attempt->>3 AS BIGINT) AS took_ms
    FROM (SELECT event, unnest(CAST(event->'rows' AS JSON[])) AS attempt FROM events WHERE type = 'deliveries.settled')
    UNION ALL
    SELECT event->>'listener_id', event->>'outcome', CAST(event->>'took_ms' AS BIGINT)
    FROM events WHERE type = 'delivery.attempted'
"""
QUESTIONS = {
    "events by type": "SELECT type, count(*) AS events FROM events GROUP BY type ORDER BY events DESC, type",
    "who changed what": """
        SELECT make_timestamp(log_ms * 1000) AS at, event->>'actor' AS actor, type, event->>'name' AS name
        FROM events WHERE topic = 'control' ORDER BY log_ms, "offset" LIMIT 20""",
    "attempts by listener": f"""
        SELECT listener, outcome, count(*) AS attempts, quantile_cont(took_ms, 0.99) AS p99_ms
        FROM ({ATTEMPTS}) GROUP BY listener, outcome ORDER BY listener, outcome""",
}


def main(folder: str) -> None:
    if list(Path(folder).glob("*.parquet")):
        source = f"read_parquet('{folder}/events-*.parquet')"
    else:
        columns = "{topic: 'VARCHAR', partition: 'INTEGER', \"offset\": 'BIGINT', log_ms: 'BIGINT', event: 'JSON'}"
        source = f"read_json('{folder}/events-*.jsonl', format = 'newline_delimited', columns = {columns})"
    database = duckdb.connect()
    database.execute(
        f"""CREATE TABLE events AS SELECT topic, partition, "offset", log_ms, CAST(event AS JSON) AS event,
            event->>'type' AS type FROM {source}"""
    )
    for question, query in QUESTIONS.items():
        print(question)
        print(database.sql(query))


if __name__ == "__main__":
    main(sys.argv[1])
