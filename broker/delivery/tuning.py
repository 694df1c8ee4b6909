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
    held_max: int = 512  # messages that are ready, in flight or waiting for a retry
    # Messages per attempt of a new listener or one on probation; there may be hundreds of such listeners.
    held_per_attempt: int = 4
    held_bytes_max: int = 4 << 20  # decoded and signed they are twice that
    # The least bytes even if the worker's memory is used up, so that one message can always move.
    held_bytes_min: int = 64 << 10
    all_held_bytes_max: int = 128 << 20  # of all dispatchers of a worker
    retries_max: int = 128  # with more retries waiting, further ones leave the window and free its room
    key_waiting_max: int = 128  # with more deliveries waiting for ordering keys, those of slow keys leave the window
    key_slow_s: float = 0.1  # an ordering key is slow when one delivery has been at its head for this long

    # Leaving the window for `outstanding` (dispatch/dispatcher.py, dispatch/leaving.py)
    # A delivery that fails for longer leaves its window, so that it does not hold the cursor.
    set_aside_after_ms: int = 60_000
    near_ms: int = 10_000  # a message due within this time waits in its window, because the cursor may wait for it
    put_off_ms: int = 1_000  # the wait before an attempt that DNS or the process's sockets prevented
    set_aside_at_once: int = 64  # deliveries of one dispatcher that retention sets aside at once
    set_aside_bytes_max: int = 1 << 20  # the bytes of deliveries set aside at once; one larger message may go alone

    # Limits of one listener, and its priority (dispatch/limits.py)
    attempts_max: int = 1024  # under way in one worker: docs/decisions/0007
    attempts_min: int = 2  # attempts in flight that each listener may have, however many listeners there are
    attempts_new_max: int = 2  # attempts in flight to a listener that has not answered yet, because it may hang
    slow_ms: int = 250  # a listener whose answers take longer on average has low priority
    took_ms_max: int = 500  # longer answers count as this, so that a single one does not make a fast listener slow
    failing: float = 0.25  # a listener that fails a larger part of its attempts has the lowest priority
    answers_weighed: int = 8  # an average is mostly made of this many last answers
    push_back_s_max: int = 60  # of a Retry-After
    rate_burst_s: float = 0.1  # a rate limit allows a burst of this much time
    rate_min_per_s: float = 0.001  # a worker's part of a rate limit is never zero

    # Connections and sockets (dispatch/connections.py, dispatch/fairness.py)
    connection_idle_s: float = 30.0  # an unused connection is closed after this; most servers keep it for longer
    sockets_kept: int = 256  # files of the process reserved for Kafka, probes and logs

    # Ticks: how often dispatchers are examined (dispatch/ticks.py)
    tick_s: float = 0.05
    tick_parts: int = 5  # dispatchers are ticked in this many parts, because all at once would block the event loop
    share_ticks: int = 5  # ticks between two rounds of sharing out; a low-priority listener is ticked once in them
    begun_at_once: int = 8
    stood_still_s: float = 0.1  # an event loop later than this expires no attempt before it has read what has arrived
    tidy_ticks: int = 100  # each dispatcher closes its idle connections once in this many ticks
    # Log lines of one kind for one listener, so that a failing listener does not flood the log.
    log_lines_per_s: int = 3

    # Probes of listeners that are down (dispatch/liveness.py)
    probes_max: int = 50  # probes in a tick when many listeners are down and the machine is idle
    probes_calm: int = 10  # probes in a tick that the intervals are calculated with
    probes_min: int = 2  # probes in a tick at least, one of them for the listener that went down last
    permits_per_probe: int = 2  # a busy machine starts one probe for this many permits of low-priority listeners
    probe_timeout_s: float = 3.0
    # Part of an interval that is random, so that listeners that went down together are probed apart.
    probe_jitter: float = 0.2

    # Reading (reading/)
    ring_max: int = 4096  # recent messages kept per partition for streams that lag a little
    ring_bytes_max: int = 2 << 20  # the bytes of these messages in the log; decoded and signed they take twice that
    fetch_bytes_first: int = 64 << 10  # size of a stream's first catch-up read: some tens of messages
    fetch_bytes_min: int = 8 << 10
    fetch_bytes_max: int = 1 << 20
    stuck_pause_s: float = 0.05  # the pause before a failed or empty catch-up read is repeated
    streams_at_once: int = 8  # that a catch-up reader serves
    messages_at_once: int = 500  # that are decoded of one read

    # Outstanding (outstanding/)
    serve_s: float = 0.05  # the longest pause between two checks for due deliveries
    due_at_once: int = 16  # records read at once; these messages are held in addition to the dispatchers'
    due_each_at_once: int = 8  # of one listener
    looks_max: int = 256  # due or redriven entries examined in one round, which takes a few milliseconds
    looks_each_max: int = 32  # entries of one listener examined in one round; the next round goes on
    redriven_at_once: int = 16  # redriven entries of one listener before other listeners are served
    key_taken_max: int = 8  # deliveries of one ordering key that its dispatcher has or gets
    rows_at_once: int = 32  # rows of the index read or removed at once, which takes about a millisecond
    append_pause_s: float = 0.5  # the pause before a record that Kafka refused is written again
    damaged_at_once: int = 500  # records that are appended together
    index_cache_kib: int = 16 << 10  # SQLite's memory; the rest of the index is in a temporary file
    record_bytes_more: int = 1 << 20  # size of a second read when the first one did not bring the record

    # Checkpoints (checkpoint/)
    checkpoint_s: float = 1.0  # between two: what a crash repeats
    low_priority_s: float = 3.0  # time between two commits of a low-priority listener
    # With more outcomes waiting, a low-priority listener is committed at the next checkpoint.
    outcomes_waiting_max: int = 64
    # A process suspended for longer may have lost all its partitions.
    suspended_s: float = SESSION_TIMEOUT_MS / 1000 - 1.0
    dirty_at_once: int = 64  # streams; there may be thousands
    commits_together: int = 4  # listeners committed at once; sixteen would delay Kafka's other answers by milliseconds
    commit_pauses_max: int = 48  # pauses in one checkpoint; with more commits, more are sent together
    commit_pause_s: float = 0.02
    idle_commit_pause_s: float = 0.005  # shorter: checkpoints wait for it
    # An idle listener is committed again after this time, so that its cursor does not expire.
    idle_checkpoint_s: float = 60.0
    conditions_at_once: int = 16  # dispatchers whose lag is calculated at once for the metrics; there may be thousands

    # The fence (fence.py)
    sure_s: float = SESSION_TIMEOUT_MS / 1000 - 1.0  # Kafka reassigns no partition sooner than this after an answer
    ask_s: float = (SESSION_TIMEOUT_MS / 1000 - 1.0) / 3  # asked this often, so that no message waits for an answer
    ask_look_s: float = 1.0

    # Take-over and hand-over (worker.py)
    tail_backlog_max: int = 10_000  # a stream further behind does not hold the tail back, and catches up
    # A missing cursor is logged only for a listener older than this; idle ones are committed every 60 s.
    no_cursor_ms: int = 180_000
    load_pause_s: float = 0.5  # the pause before a take-over that failed in Kafka is tried again
    opened_at_once: int = 20  # dispatchers added: opening their secrets takes time
    drain_s: float = 5.0  # time for attempts in flight when the process ends
    hand_over_s: float = 2.0  # time for attempts in flight at a hand-over, for which all workers wait
    hanging_s: float = 1.0  # an older attempt is not awaited at a hand-over, nor at shutdown if its listener fails
    last_checkpoint_s_max: float = 5.0  # with drain_s, shorter than the group waits for a member

    # Changes of messages (changes/)
    answer_s: float = 3.0  # time for an attempt in flight; after it the answer is `unknown`
    answer_look_s: float = 0.02
    prune_s: float = 10.0
    changes_many: int = 1_000_000  # changes in memory that are worth a log line: about 200 MB
    change_pause_s: float = 0.2  # the pause before a changed message that Kafka did not return is read again
    texts_max: int = 16  # changed messages kept, so that all listeners share one copy

    # Housekeeping (housekeeping/)
    ended_look_s: float = 60.0
    ended_again_s: float = 5.0  # the wait after something was found or Kafka failed, because another worker may be late
    replay_look_s: float = 1.0
    retention_look_s: float = 600.0
    set_aside_listeners: int = 4  # listeners that set aside for retention at once: 64 messages, or 1 MiB, of each
    set_aside_s: float = 10.0  # redriven entries of one listener before other listeners are served
    set_aside_look_s: float = 0.05


TUNED: Final = Tuning()
