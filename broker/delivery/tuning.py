"""Every tuned number of delivery, in one table: what it limits, its unit in its name, and why it has this value.

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
    """The tuned numbers of one worker. A name's ending is its unit: `_ms` and `_s` are times, `_bytes` is a size, and
    `_at_once` is the size of a batch, after which other tasks may run.
    """

    # Memory of one listener (dispatch/room.py)
    held_max: int = 512  # A worker holds at most this many messages of one listener in memory.
    held_per_attempt: int = 4  # A new listener may hold this many messages for each allowed attempt.
    # A worker holds at most this many bytes of one listener's messages. Decoded, they take twice as many bytes.
    held_bytes_max: int = 4 << 20
    held_bytes_min: int = 64 << 10  # A listener's share of the memory for messages is never less than this many bytes.
    all_held_bytes_max: int = 128 << 20  # for all listeners together
    retries_max: int = 128  # If more retries than this wait in memory, further ones move to `outstanding`.
    # If more deliveries than this wait for their ordering key, some move to the topic `outstanding`.
    key_waiting_max: int = 128
    key_slow_s: float = 0.1  # An ordering key is slow if one delivery has blocked it for this long.

    # When deliveries move to `outstanding` (dispatch/dispatcher.py)
    set_aside_after_ms: int = 60_000  # A delivery that has failed for longer than this moves to `outstanding`.
    near_ms: int = 10_000  # A scheduled message that is due within this time waits in memory.
    put_off_ms: int = 1_000  # If DNS does not answer, or no socket is free, an attempt is repeated after this time.
    set_aside_at_once: int = 64  # Retention moves this many deliveries of a listener to `outstanding` at once.
    # Deliveries that retention moves at once have at most this many bytes, except a single larger one.
    set_aside_bytes_max: int = 1 << 20

    # Limits of one listener, and its priority (dispatch/limits.py)
    attempts_max: int = 1024  # in flight in a worker
    attempts_min: int = 2  # Every listener may have this many attempts in flight, whatever the others use.
    # A listener that has not answered yet may hang, so it has at most this many attempts in flight.
    attempts_new_max: int = 2
    slow_ms: int = 250  # A listener whose answers take longer than this on average has low priority.
    # A longer answer counts as this time, so that a single long one does not make a fast listener slow.
    took_ms_max: int = 500
    failing: float = 0.25  # A listener that rejects a larger part of its attempts has the lowest priority.
    answers_weighed: int = 8  # The moving averages are over about this many of the last answers.
    push_back_s_max: int = 60  # longest accepted Retry-After
    rate_burst_s: float = 0.1  # A rate limit allows a burst of this much time.
    rate_min_per_s: float = 0.001  # A worker's part of a rate limit is never zero.

    # Connections and sockets (dispatch/connections.py and fairness.py)
    connection_idle_s: float = 30.0  # An idle connection is closed after this time. Most servers keep it for longer.
    sockets_kept: int = 256  # This many file descriptors are reserved for Kafka, probes and logs.

    # Ticks: the regular work for each listener (dispatch/ticks.py)
    tick_s: float = 0.05
    tick_parts: int = 5  # Each tick is divided into this many parts, so that it does not block the event loop.
    # Once in this many ticks of the worker, low-priority listeners are served and all shares are computed.
    share_ticks: int = 5
    begun_at_once: int = 8
    # If the event loop is later than this, answers that have arrived are read before attempts time out.
    stood_still_s: float = 0.1
    # While no listener needs ticks, idle connections are closed this often instead. 0 means that ticks never stop.
    rest_s: float = 5.0
    tidy_ticks: int = 100  # Idle connections of each listener are closed once in this many ticks of the worker.
    log_lines_per_min: int = 3  # A failing listener causes at most this many log lines of one kind.

    # Probes of listeners that are down (dispatch/liveness.py)
    probes_max: int = 50  # One tick of the worker starts at most this many probes, if the machine is idle.
    probes_calm: int = 10  # Probe intervals are chosen so that one tick of the worker starts this many probes.
    probes_min: int = 2  # One tick of the worker may start this many probes even on a busy machine.
    permits_per_probe: int = 2  # On a busy machine, low-priority listeners start this many attempts for each probe.
    probe_timeout_s: float = 3.0
    # This part of a probe interval is random, so that listeners that failed together are probed at different times.
    probe_jitter: float = 0.2

    # Reading (reading/)
    ring_max: int = 4096  # A partition keeps this many recent messages in memory, for listeners that lag a little.
    # The recent messages in memory have at most this many bytes as stored in Kafka. Decoded, they take twice that.
    ring_bytes_max: int = 2 << 20
    fetch_bytes_first: int = 64 << 10  # size of the first catch-up read
    fetch_bytes_min: int = 8 << 10
    fetch_bytes_max: int = 1 << 20
    stuck_pause_s: float = 0.05  # A catch-up read that failed or returned nothing is repeated after this pause.
    streams_at_once: int = 8  # served by a catch-up reader
    messages_at_once: int = 500  # decoded from one read

    # Outstanding (outstanding/)
    serve_s: float = 0.05  # Due deliveries are looked for at least this often while any are due.
    # If no delivery is due, the worker looks again when the next one becomes due, and at least this often.
    serve_idle_s: float = 5.0
    due_at_once: int = 16  # At most this many due deliveries are read from Kafka at once.
    due_each_at_once: int = 8  # due deliveries of one listener
    looks_max: int = 256  # One round of handing over due deliveries examines at most this many, in a few milliseconds.
    looks_each_max: int = 32  # One round of handing over deliveries examines at most this many of one listener.
    redriven_at_once: int = 16  # Redrives are served in turn, this many deliveries of one listener at a time.
    key_taken_max: int = 8  # At most this many deliveries of one ordering key are taken from `outstanding` at once.
    rows_at_once: int = 32  # This many rows of the SQLite index are handled at once, in about a millisecond.
    append_pause_s: float = 0.5  # A record that Kafka did not accept is written again after this pause.
    damaged_at_once: int = 500  # appended in one request
    index_cache_kib: int = 16 << 10  # SQLite caches this much of its index in memory; the rest is in a temporary file.
    record_bytes_more: int = 1 << 20  # If a read was too small for its record, the next read has this size.

    # Checkpoints (checkpoint/)
    # A checkpoint is made this often. After a crash, the deliveries since the last one are repeated.
    checkpoint_s: float = 1.0
    low_priority_s: float = 3.0  # The cursors of a low-priority listener are committed this often.
    # The cursors of a low-priority listener with more outcomes than this are committed sooner.
    outcomes_waiting_max: int = 64
    # A process that was suspended for longer than this may have lost all its partitions.
    suspended_s: float = SESSION_TIMEOUT_MS / 1000 - 1.0
    dirty_at_once: int = 64  # changed streams handled between yields
    # The cursors of this many listeners are committed at once. Sixteen would delay Kafka's other answers.
    commits_together: int = 4
    commit_pauses_max: int = 48  # A checkpoint pauses at most this often, whatever it has to commit.
    commit_pause_s: float = 0.02
    idle_commit_pause_s: float = 0.005  # short, because checkpoints wait for it
    # The cursor of an idle listener is committed again after this time, so that Kafka does not expire it.
    idle_checkpoint_s: float = 60.0
    conditions_at_once: int = 16  # listeners between two yields

    # The fence (fence.py)
    sure_s: float = (
        SESSION_TIMEOUT_MS / 1000 - 1.0
    )  # For this time after an answered heartbeat, Kafka assigns the partitions to no other worker.
    # A worker asks Kafka at this interval whether it owns its partitions, so that deliveries need not wait for it.
    ask_s: float = (SESSION_TIMEOUT_MS / 1000 - 1.0) / 3
    ask_look_s: float = 1.0

    # Take-over and hand-over (worker.py)
    # A listener more than this many messages behind uses a catch-up reader, so that new messages are not delayed.
    tail_backlog_max: int = 10_000
    no_cursor_ms: int = 180_000  # A missing cursor is logged only if the listener was created longer ago than this.
    load_pause_s: float = 0.5  # After an error of Kafka, taking partitions over is retried after this pause.
    opened_at_once: int = 20  # secrets decrypted between two yields
    drain_s: float = 5.0  # When the process stops, attempts in flight may take this much longer.
    # At a rebalance, attempts in flight may take this much longer, and all workers wait for them.
    hand_over_s: float = 2.0
    # An attempt that has run for longer than this is not awaited at a rebalance, nor at shutdown if its listener fails.
    hanging_s: float = 1.0
    # The last checkpoint may take this long. Together with `drain_s`, this is less than Kafka's session timeout.
    last_checkpoint_s_max: float = 5.0

    # Changes of messages (changes/)
    answer_s: float = 3.0  # A change of a message waits this long for an attempt in flight.
    answer_look_s: float = 0.02
    prune_s: float = 10.0
    # If memory holds more updates and deletions than this (about 200 MB), a warning is logged.
    changes_many: int = 1_000_000
    # If Kafka does not return an update of a message, the worker reads it again after this time.
    change_pause_s: float = 0.2
    texts_max: int = 16  # The data of this many updated messages is cached for all listeners.

    # Housekeeping (housekeeping/)
    ended_look_s: float = 60.0
    # If a deleted listener was found, or Kafka failed, the worker looks for deleted listeners again after this time.
    ended_again_s: float = 5.0
    replay_look_s: float = 1.0
    retention_look_s: float = 600.0
    clock_skew_ms: int = CLOCK_SKEW_MS  # The clocks of the machines that write to Kafka differ by at most this.
    set_aside_listeners: int = 4  # Retention moves deliveries of this many listeners at once.
    set_aside_s: float = 10.0  # longest turn of one listener
    set_aside_look_s: float = 0.05


TUNED: Final = Tuning()
