"""Every tuned number of delivery, in one table: what it bounds, its unit in its name, and why it is what it is.

For: reading the numbers side by side, and passing others in (a test does). `Worker` takes one table and hands it on.
Not for: what a user sets (broker/settings.py, the settings of a listener), numbers of a format or of Kafka's protocol
(they stand where the format is), nor the constants of one pure algorithm (broker/core: flow, circuit, probes, window).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.ports import SESSION_TIMEOUT_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The numbers of one worker. `_ms`, `_s`: a time; `_bytes`: a size; `_at_once`: a batch, after which others run."""

    # Room: what one dispatcher may hold in memory (dispatch/room.py)
    held_max: int = 512  # A dispatcher holds at most this many messages: ready, in flight or waiting for a retry.
    held_per_attempt: int = 4  # A new listener, or one on probation, holds this many messages for each attempt.
    held_bytes_max: int = 4 << 20  # Decoded and signed, the messages take twice as much.
    held_bytes_min: int = 64 << 10  # A dispatcher may always hold this many bytes, so that one message can move.
    all_held_bytes_max: int = 128 << 20  # of all dispatchers of a worker
    retries_max: int = 128  # If more retries wait, further ones leave the window and free its room.
    key_waiting_max: int = 128  # If more deliveries wait for ordering keys, those of slow keys leave the window.
    key_slow_s: float = 0.1  # An ordering key is slow when one delivery has been at its head for this long.

    # Leaving the window for `outstanding` (dispatch/dispatcher.py)
    set_aside_after_ms: int = 60_000  # A delivery that fails for longer leaves its window, so that the cursor can pass.
    near_ms: int = 10_000  # A message that is due within this time waits in its window.
    put_off_ms: int = 1_000  # An attempt that DNS or the process's sockets prevented is repeated after this time.
    set_aside_at_once: int = 64  # Retention has a dispatcher set aside at most this many deliveries at once.
    # Deliveries that are set aside at once have at most this many bytes; one larger may go alone.
    set_aside_bytes_max: int = 1 << 20

    # Limits of one listener, and its priority (dispatch/limits.py)
    attempts_max: int = 1024  # under way in one worker: docs/decisions/0007
    attempts_min: int = 2  # Each listener may have this many attempts in flight, however many listeners there are.
    # A listener that has not answered yet may hang, so it gets at most this many attempts at once.
    attempts_new_max: int = 2
    slow_ms: int = 250  # A listener whose answers take longer on average has low priority.
    took_ms_max: int = 500  # Longer answers count as this, so that a single one does not make a fast listener slow.
    failing: float = 0.25  # A listener that fails a larger part of its attempts has the lowest priority.
    answers_weighed: int = 8  # An average is made mostly of this many last answers.
    push_back_s_max: int = 60  # of a Retry-After
    rate_burst_s: float = 0.1  # A rate limit allows a burst of this much time.
    rate_min_per_s: float = 0.001  # A worker's part of a rate limit is never zero.

    # Connections and sockets (dispatch/connections.py, dispatch/fairness.py)
    connection_idle_s: float = 30.0  # An unused connection is closed after this; most servers keep it for longer.
    sockets_kept: int = 256  # This many files of the process are reserved for Kafka, probes and logs.

    # Ticks: how often dispatchers are examined (dispatch/ticks.py)
    tick_s: float = 0.05
    tick_parts: int = 5  # Dispatchers are ticked in this many parts: all at once would block the event loop.
    share_ticks: int = 5  # Shares are calculated once in this many ticks; low-priority listeners are ticked as often.
    begun_at_once: int = 8
    # An event loop that is later than this first reads what has arrived, before attempts time out.
    stood_still_s: float = 0.1
    tidy_ticks: int = 100  # Each dispatcher closes its idle connections once in this many ticks.
    log_lines_per_min: int = 3  # A listener that fails everything gets at most this many log lines of a kind.

    # Probes of listeners that are down (dispatch/liveness.py)
    probes_max: int = 50  # A tick starts at most this many probes, if many listeners are down and the machine is idle.
    probes_calm: int = 10  # The intervals between probes are set so that a tick starts this many.
    probes_min: int = 2  # A tick may always start this many probes, one of them for the listener that went down last.
    permits_per_probe: int = 2  # A busy machine starts one probe for this many permits of low-priority listeners.
    probe_timeout_s: float = 3.0
    # This part of an interval is random, so that listeners that went down together are probed apart.
    probe_jitter: float = 0.2

    # Reading (reading/)
    ring_max: int = 4096  # A partition keeps this many recent messages for streams that lag a little.
    # Recent messages have at most this many bytes in the log; in memory they take twice that.
    ring_bytes_max: int = 2 << 20
    fetch_bytes_first: int = 64 << 10  # A stream's first catch-up read has this size: some tens of messages.
    fetch_bytes_min: int = 8 << 10
    fetch_bytes_max: int = 1 << 20
    stuck_pause_s: float = 0.05  # A catch-up read that failed or brought nothing is repeated after this pause.
    streams_at_once: int = 8  # that a catch-up reader serves
    messages_at_once: int = 500  # that are decoded of one read

    # Outstanding (outstanding/)
    serve_s: float = 0.05  # Due deliveries are checked at least this often.
    due_at_once: int = 16  # This many records are read at once; their messages are held beside those of dispatchers.
    due_each_at_once: int = 8  # of one listener
    looks_max: int = 256  # A round examines this many due or redriven entries, which takes a few milliseconds.
    looks_each_max: int = 32  # A round examines this many entries of one listener; the next round goes on.
    redriven_at_once: int = 16  # This many redriven entries of a listener are served before other listeners.
    key_taken_max: int = 8  # A dispatcher has, or gets, at most this many deliveries of one ordering key.
    rows_at_once: int = 32  # This many rows of the index are read or removed at once, in about a millisecond.
    append_pause_s: float = 0.5  # A record that Kafka refused is written again after this pause.
    damaged_at_once: int = 500  # records that are appended together
    index_cache_kib: int = 16 << 10  # SQLite has this much memory; the rest of the index is in a temporary file.
    record_bytes_more: int = 1 << 20  # A second read has this size, if the first one did not bring the record.

    # Checkpoints (checkpoint/)
    checkpoint_s: float = 1.0  # between two: what a crash repeats
    low_priority_s: float = 3.0  # A low-priority listener is committed this often.
    outcomes_waiting_max: int = 64  # A low-priority listener with more outcomes is committed at the next checkpoint.
    # A process that was suspended for longer may have lost all its partitions.
    suspended_s: float = SESSION_TIMEOUT_MS / 1000 - 1.0
    dirty_at_once: int = 64  # streams; there may be thousands
    commits_together: int = 4  # This many listeners are committed at once; sixteen would delay Kafka's other answers.
    commit_pauses_max: int = 48  # A checkpoint has at most this many pauses; with more commits, more are sent together.
    commit_pause_s: float = 0.02
    idle_commit_pause_s: float = 0.005  # shorter: checkpoints wait for it
    # An idle listener is committed again after this, so that its cursor does not expire.
    idle_checkpoint_s: float = 60.0
    conditions_at_once: int = 16  # The lag of this many dispatchers is calculated at once; there may be thousands.

    # The fence (fence.py)
    sure_s: float = (
        SESSION_TIMEOUT_MS / 1000 - 1.0
    )  # For so long after a heartbeat was answered, Kafka gives our partitions to nobody else.
    # Kafka is asked this often, so that no message waits for an answer.
    ask_s: float = (SESSION_TIMEOUT_MS / 1000 - 1.0) / 3
    ask_look_s: float = 1.0

    # Take-over and hand-over (worker.py)
    # A stream that is further behind does not hold the tail back; it catches up instead.
    tail_backlog_max: int = 10_000
    no_cursor_ms: int = 180_000  # A missing cursor is logged only for a listener that is older than this.
    load_pause_s: float = 0.5  # A take-over that failed in Kafka is tried again after this pause.
    opened_at_once: int = 20  # Dispatchers are added in batches, because opening their secrets takes time.
    drain_s: float = 5.0  # At the end of the process, attempts in flight have this much time.
    hand_over_s: float = 2.0  # At a hand-over, attempts in flight have this much time, because all workers wait.
    hanging_s: float = 1.0  # An older attempt is not awaited at a hand-over, nor at shutdown if its listener fails.
    last_checkpoint_s_max: float = 5.0  # Together with drain_s, this is less than the group waits for a member.

    # Changes of messages (changes/)
    answer_s: float = 3.0  # An attempt in flight has this much time before a change is answered `unknown`.
    answer_look_s: float = 0.02
    prune_s: float = 10.0
    changes_many: int = 1_000_000  # More changes in memory are logged; they take about 200 MB.
    change_pause_s: float = 0.2  # A changed message that Kafka did not return is read again after this pause.
    texts_max: int = 16  # This many changed messages are kept, so that all listeners share one copy.

    # Housekeeping (housekeeping/)
    ended_look_s: float = 60.0
    ended_again_s: float = 5.0  # Ended listeners are looked for again after this, if some were found or Kafka failed.
    replay_look_s: float = 1.0
    retention_look_s: float = 600.0
    set_aside_listeners: int = 4  # Retention has this many listeners set aside at once.
    set_aside_s: float = 10.0  # redriven entries of one listener before other listeners are served
    set_aside_look_s: float = 0.05


TUNED: Final = Tuning()
