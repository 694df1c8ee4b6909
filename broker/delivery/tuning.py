"""The tuned numbers of delivery, in one table: what each number does, and often why it has its value.

For: reading the numbers side by side, and passing other numbers in tests. `Worker` takes one table and passes it on.
Not for: settings of users (broker/settings.py, the settings of a listener), numbers of a format or of Kafka's protocol,
nor the constants of one pure algorithm (broker/core: flow, circuit, probes, window).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.core.changes import CLOCK_SKEW_MS
from broker.ports import SESSION_TIMEOUT_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The tuning parameters of one worker. A unit is part of the name: `ms` and `s` are times, `per_s` is a rate,
    `bytes` and `kib` are sizes.

    A name that ends with `_at_once` is the number of items in one step. Between two steps, other tasks may run. A name
    that ends with `_together` is a number of items that are in progress at the same time.
    """

    # Memory of one listener (dispatch/room.py)
    # The most messages in memory for a fast listener. Large batches raise this limit; it is lower for slow or new
    # listeners.
    held_max: int = 512
    # For a listener with batches, the limit is this many full batches, if these have more messages than `held_max`.
    batches_held: int = 4
    # A listener that is new or was just down may have this many messages in memory for each attempt it may have in
    # flight. Messages that wait for a retry do not count.
    held_per_attempt: int = 4
    # One listener's messages in memory have at most about this many bytes before decoding. Decoding doubles the bytes.
    held_bytes_max: int = 4 << 20
    # Each listener may have at least this many bytes of messages in memory, even if the worker has little left.
    held_bytes_min: int = 64 << 10
    # A worker divides this many bytes among its listeners, for messages in memory. Each gets at least `held_bytes_min`.
    all_held_bytes_max: int = 128 << 20
    # This many deliveries of a listener may wait in memory for a retry (or one full batch, if that is more).
    # Deliveries that wait for a retry may fill at most half of the listener's limit on messages in memory.
    # If too many deliveries of a listener wait for a retry, the next delivery that fails moves to `outstanding`.
    retries_max: int = 128
    # If this many deliveries wait for earlier ones of their ordering keys, those of slow keys move to `outstanding`.
    # If a listener may have only 100 messages in memory, its limit `key_waiting_max` is 50, half of that number.
    # `key_waiting_max` does not apply to a listener that is new (see `attempts_new_max`).
    key_waiting_max: int = 128
    key_slow_s: float = 0.1  # An ordering key counts as slow if one delivery has blocked it for this long.

    # When deliveries move to `outstanding` (dispatch/dispatcher.py)
    # A delivery moves to the topic `outstanding` if its next attempt is due at least this long after its first attempt.
    set_aside_after_ms: int = 60_000
    # A message whose `deliver_at` comes within this time waits in memory, if half of the listener's memory is free.
    near_ms: int = 10_000
    # If no thread is free for the DNS look-up, the delivery is attempted again after this time.
    put_off_ms: int = 1_000
    # Before Kafka deletes messages, their unfinished deliveries move to the topic `outstanding`.
    # Even if a listener's memory is full, this many of its messages may be loaded at a time to move to `outstanding`.
    set_aside_together: int = 64
    # While messages of this many bytes move to `outstanding`, no more are loaded if the listener's memory is full.
    set_aside_bytes_max: int = 1 << 20

    # The following settings limit a listener's attempts, or decide its priority (dispatch/limits.py).
    attempts_max: int = 1024  # A worker divides this many attempts in flight among its listeners.
    # Each listener's share is at least this many, even above `attempts_max`. Its own limits may allow fewer.
    attempts_min: int = 2
    # A new listener may have at most this many attempts in flight, because it may never answer.
    # A listener is new until it answers this worker with a status below 500. After it was down, it is new again.
    attempts_new_max: int = 2
    slow_ms: int = 250  # A listener that is not failing is slow if its answers take this long or longer on average.
    # In a listener's average answer time, an answer slower than this counts as this long, so one answer changes little.
    took_ms_max: int = 500
    # A listener counts as failing, with the lowest priority, if more than this fraction of its recent attempts fail.
    failing: float = 0.25
    # A listener's average answer time and failure rate are moving averages of about this many recent attempts.
    answers_weighed: int = 8
    # An answer 429 or 503 with Retry-After stops attempts to the listener for at most this long.
    push_back_s_max: int = 60
    # After a time without attempts, a rate limit permits a burst: one attempt, plus the attempts of this many seconds.
    rate_burst_s: float = 0.1
    rate_min_per_s: float = 0.001  # Workers divide a listener's rate limit. A worker's part is never less than this.

    # Connections and sockets (dispatch/connections.py and fairness.py)
    connection_idle_s: float = 30.0  # An idle connection is closed after this time, or a few seconds later.
    # This many file descriptors are kept for other uses than connections to listeners, such as Kafka and probes.
    sockets_kept: int = 256

    # The following settings are mostly for ticks: a worker's regular work for its listeners (dispatch/ticks.py).
    # A tick (regular work for a worker's listeners) begins about this often. If no listener needs ticks, they pause.
    tick_s: float = 0.05
    # The regular work of a tick is divided into this many parts, so that it does not block the event loop for long.
    tick_parts: int = 5
    # In one of this many ticks (of 50 ms each), a worker divides its limits among its listeners.
    # If very many slow and failing listeners need ticks, each takes part in only one of this many ticks.
    share_ticks: int = 5
    # With this many slow and failing listeners that need ticks, each takes part in every second tick, and so on.
    ticked_together: int = 32
    # After a tick has permitted this many attempts of slow and failing listeners, it yields to the event loop.
    begun_at_once: int = 8
    # Whenever a tick has run for this long, it yields to the event loop, so that answers are read.
    turn_s: float = 0.002
    # If the event loop is late by more than this, a worker first reads arrived answers, and then times out attempts.
    stood_still_s: float = 0.1
    # While no listener needs regular work, ticks pause, and idle connections are closed only this often. 0: no pause.
    rest_s: float = 5.0
    # Once in this many ticks (of 50 ms each), a worker closes connections that were idle for `connection_idle_s`.
    tidy_ticks: int = 100
    # Per listener, a worker logs at most this many lines `attempt.failed` per minute, and as many `delivery.parked`.
    log_lines_per_min: int = 3

    # The following settings are for probes of listeners that are down (dispatch/liveness.py).
    # In each tick (50 ms), a worker starts at most this many probes. On a busy machine, it starts fewer.
    probes_max: int = 50
    # If 100 or more listeners are down, an idle machine usually probes this many of them, or more, in each tick.
    # For example, if 200 listeners are down, each is usually probed once a second (every 20 ticks) or more often.
    probes_calm: int = 10
    probes_min: int = 2  # Even on a busy machine, a worker may start this many probes in each tick (50 ms).
    # If slow and failing listeners may get 20 attempts in a tick, 10 probes may start, too: 20 / `permits_per_probe`.
    permits_per_probe: int = 2
    probe_timeout_s: float = 3.0
    # This fraction of a probe interval is random, so that listeners that failed together are not probed together.
    probe_jitter: float = 0.2

    # Reading (reading/)
    # A worker keeps at most this many recent messages of each partition in memory, for listeners that lag a little.
    ring_max: int = 4096
    # The recent messages of one partition have at most this many bytes before decoding. Decoding doubles the bytes.
    ring_bytes_max: int = 2 << 20
    fetch_bytes_first: int = 64 << 10  # size of the first catch-up read
    fetch_bytes_min: int = 8 << 10
    fetch_bytes_max: int = 1 << 20
    # If a catch-up read has failed, or has not reached the listener's next offset, the next read waits this long.
    stuck_pause_s: float = 0.05
    streams_at_once: int = 8  # served by a catch-up reader
    messages_at_once: int = 500  # decoded from one read

    # Outstanding (outstanding/)
    # If a worker has no memory left for a listener's due delivery from `outstanding`, it tries again after this time.
    serve_s: float = 0.05
    # While no delivery in `outstanding` is due, the worker waits until one becomes due, but no longer than this.
    serve_idle_s: float = 5.0
    # One round chooses due deliveries of `outstanding`, listener by listener, until it has at least this many.
    due_at_once: int = 16
    due_each_at_once: int = 8  # A round that chooses due deliveries takes at most this many of one listener.
    # A round that chooses due deliveries also ends when it has examined about this many, in a few milliseconds.
    looks_max: int = 256
    looks_each_max: int = 32  # A round that chooses due deliveries examines at most this many of one listener.
    # A redrive (a request to retry) makes deliveries due in steps. One step makes at most this many deliveries due.
    redriven_at_once: int = 16
    # For each ordering key of a listener, at most this many deliveries from `outstanding` are in memory together.
    key_taken_max: int = 8
    # The worker reads or writes this many rows of its SQLite index in one step, which takes about a millisecond.
    rows_at_once: int = 32
    # If Kafka has not stored a record of `outstanding`, the worker writes the record again after this pause.
    append_pause_s: float = 0.5
    damaged_at_once: int = 500  # appended in one request
    # SQLite keeps this many KiB of the index in memory. The rest is in a temporary file.
    index_cache_kib: int = 16 << 10
    # A search for a newer record of a delivery reads Kafka in fetches of this many bytes.
    record_bytes_more: int = 1 << 20

    # Checkpoints (checkpoint/)
    # A worker begins a checkpoint this long after its previous checkpoint has ended.
    # After a crash, deliveries that a listener got since the newest commit of its offset are made again.
    checkpoint_s: float = 1.0
    # Usually, the offsets of a slow or failing listener are committed at most once in this time.
    low_priority_s: float = 3.0
    # If this many results of attempts wait to be written, a slow or failing listener's offsets are committed sooner.
    outcomes_waiting_max: int = 64
    # If Kafka has not stored a partition's results for this time, the worker loads no more messages of the partition.
    unwritten_s: float = 3.0
    # If a worker was suspended for longer than this, it ends, because other workers may own its partitions now.
    suspended_s: float = SESSION_TIMEOUT_MS / 1000 - 1.0
    dirty_at_once: int = 64  # changed streams handled between yields
    # A checkpoint usually commits the offsets of this many listeners, and then pauses. With 16, Kafka would be slower.
    commits_together: int = 4
    commit_pauses_max: int = 48  # A checkpoint makes at most this many pauses, even if there are many listeners.
    commit_pause_s: float = 0.02
    idle_commit_pause_s: float = 0.005  # short, because checkpoints wait for it
    # Kafka deletes old commits. So the offset of an idle listener is committed again after about this time.
    idle_checkpoint_s: float = 60.0
    conditions_at_once: int = 16  # listeners between two yields

    # The fence (fence.py)
    # A worker trusts Kafka's answer that it owns its partitions for this time after the request, or until a hand-over.
    sure_s: float = SESSION_TIMEOUT_MS / 1000 - 1.0
    # A worker asks Kafka this often whether it owns its partitions, so that deliveries seldom wait for the answer.
    ask_s: float = (SESSION_TIMEOUT_MS / 1000 - 1.0) / 3
    ask_look_s: float = 1.0

    # Take-over and hand-over (worker.py)
    # After a take-over, the reader of new messages also serves listeners that are at most this many offsets behind.
    tail_backlog_max: int = 10_000
    # A listener without a committed offset is logged only if it was created longer ago than this.
    no_cursor_ms: int = 180_000
    # If Kafka failed while partitions were taken over, the worker tries again after this pause.
    load_pause_s: float = 0.5
    opened_at_once: int = 20  # secrets decrypted between two yields
    drain_s: float = 5.0  # When the process stops, it waits at most this long for attempts in flight.
    # At a rebalance, a worker waits at most this long for its attempts in flight. All other workers wait for it.
    hand_over_s: float = 2.0
    # At a rebalance, a worker does not wait for a listener whose attempts have all run for longer than this.
    # When a worker stops, it does not wait for a failing listener whose attempts have all run for longer than this.
    hanging_s: float = 1.0
    # The final checkpoint, before a worker hands over its partitions or stops, takes at most this long.
    # `hand_over_s` plus `last_checkpoint_s_max` must be less than Kafka's session timeout.
    last_checkpoint_s_max: float = 5.0

    # Changes of messages (changes/)
    # The answer to an update or deletion of a message waits at most this long for attempts in flight.
    answer_s: float = 3.0
    answer_look_s: float = 0.02
    prune_s: float = 10.0
    # If a worker holds more updates and deletions in memory than this (about 200 MB), it logs a warning.
    changes_many: int = 1_000_000
    # If Kafka does not answer when the worker reads an update of a message, the worker reads it again after this time.
    change_pause_s: float = 0.2
    texts_max: int = 16  # A worker caches the data of at most this many updated messages, for all listeners together.

    # Housekeeping (housekeeping/)
    ended_look_s: float = 60.0
    # A worker deletes the offsets of deleted listeners. If a deletion may have failed, it tries again after this time.
    ended_again_s: float = 5.0
    replay_look_s: float = 1.0
    retention_look_s: float = 600.0
    clock_skew_ms: int = CLOCK_SKEW_MS  # Workers assume here that machines' clocks differ by at most this.
    # Retention moves old deliveries to `outstanding`, for this many (listener, partition) pairs at the same time.
    set_aside_listeners: int = 4
    set_aside_s: float = 10.0  # longest turn of one listener
    set_aside_look_s: float = 0.05


TUNED: Final = Tuning()
