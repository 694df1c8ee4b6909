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
    held_max: int = 512  # messages, ready, under way or waiting for a retry
    held_per_attempt: int = 4  # messages per attempt of a new listener or one on probation: there may be hundreds
    held_bytes_max: int = 4 << 20  # decoded and signed they are twice that
    held_bytes_min: int = 64 << 10  # even where the worker's memory is used up: one message at least must move
    all_held_bytes_max: int = 128 << 20  # of all dispatchers of a worker
    retries_max: int = 128  # more that wait for a retry leave the window: they must not take the others' room
    key_waiting_max: int = 128  # more that wait for their ordering keys do, too, if the keys are slow
    key_slow_s: float = 0.1  # a key is slow when one delivery has been at its head as long as this

    # Leaving the window for `outstanding` (dispatch/dispatcher.py, dispatch/leaving.py)
    set_aside_after_ms: int = 60_000  # a delivery that fails for longer must not hold the cursor
    near_ms: int = 10_000  # a message due so soon waits in its window: the cursor may wait for it
    put_off_ms: int = 1_000  # until an attempt is begun again that DNS or the process's sockets kept from being made
    set_aside_at_once: int = 64  # deliveries of one dispatcher being written when retention is to take the log
    set_aside_bytes_max: int = 1 << 20  # their bytes; one larger message may go alone

    # Limits of one listener, and its priority (dispatch/limits.py)
    attempts_max: int = 1024  # under way in one worker: docs/decisions/0007
    attempts_min: int = 2  # that each listener may have, however many listeners there are
    attempts_new_max: int = 2  # to a listener that has not answered yet: it may hang
    slow_ms: int = 250  # a listener that takes longer on average has low priority
    took_ms_max: int = 500  # longer answers count as this: a single one must not make a fast listener slow
    failing: float = 0.25  # a listener that fails a larger part of its attempts has the lowest priority
    answers_weighed: int = 8  # the last answers that count for most of an average
    push_back_s_max: int = 60  # of a Retry-After
    rate_burst_s: float = 0.1  # the attempts of so much time may begin at once under a rate
    rate_min_per_s: float = 0.001  # a worker's part of a rate is never nothing

    # Connections and sockets (dispatch/connections.py, dispatch/fairness.py)
    connection_idle_s: float = 30.0  # until an unused connection is closed: less than most servers keep it
    sockets_kept: int = 256  # files of the process that are kept for Kafka, probes and logs

    # Ticks: how often dispatchers are looked at (worker.py)
    tick_s: float = 0.05
    tick_parts: int = 5  # dispatchers are ticked in so many parts: all at once would hold the event loop up
    share_ticks: int = 5  # ticks until all is shared out anew; a listener of low priority has one of them
    begun_at_once: int = 8
    stood_still_s: float = 0.1  # an event loop as late as this expires nothing: first it reads what has come
    tidy_ticks: int = 100  # within so many each dispatcher closes its idle connections once
    log_lines_per_s: int = 3  # of one listener and kind: a listener that fails everything must not flood the log

    # Probes of listeners that are down (dispatch/liveness.py)
    probes_max: int = 50  # in a tick, where many are down and the machine has time to spare
    probes_calm: int = 10  # in a tick; the intervals are reckoned with these
    probes_min: int = 2  # in a tick, of which one is for the listener that went down last
    permits_per_probe: int = 2  # probes shrink with the permits of the slow
    probe_timeout_s: float = 3.0
    probe_jitter: float = 0.2  # of an interval: listeners that went down together are probed apart

    # Reading (reading/)
    ring_max: int = 4096  # messages kept per partition for streams that lag a little
    ring_bytes_max: int = 2 << 20  # their bytes in the log; decoded and signed they are twice that
    fetch_bytes_first: int = 64 << 10  # of a stream's first catch-up read: room for some tens of messages
    fetch_bytes_min: int = 8 << 10
    fetch_bytes_max: int = 1 << 20
    stuck_pause_s: float = 0.05  # before a catch-up read that failed, or brought nothing, is made again
    streams_at_once: int = 8  # that a catch-up reader serves
    messages_at_once: int = 500  # that are decoded of one read

    # Outstanding (outstanding/)
    serve_s: float = 0.05  # between two looks at what is due, where nothing wakes them sooner
    due_at_once: int = 16  # records read at once, so messages held besides the dispatchers'
    due_each_at_once: int = 8  # of one listener
    looks_max: int = 256  # at entries that are due or redriven, in one round: a few milliseconds
    looks_each_max: int = 32  # of one listener, and as many again in the next round
    redriven_at_once: int = 16  # of one listener, before other listeners are served
    key_taken_max: int = 8  # of one ordering key that its dispatcher has or gets
    rows_at_once: int = 32  # of the index that are read or removed: about a millisecond
    append_pause_s: float = 0.5  # before a record that Kafka did not take is written again
    damaged_at_once: int = 500  # records that are appended together
    index_cache_kib: int = 16 << 10  # of SQLite; the rest of the index is in a temporary file
    record_bytes_more: int = 1 << 20  # of a second read, when the first did not bring the record

    # Checkpoints (checkpoint/)
    checkpoint_s: float = 1.0  # between two: what a crash repeats
    low_priority_s: float = 3.0  # between two commits of a listener of low priority
    outcomes_waiting_max: int = 64  # with more, such a listener is committed in the next checkpoint
    suspended_s: float = SESSION_TIMEOUT_MS / 1000 - 1.0  # a process that stood still longer may have lost all it had
    dirty_at_once: int = 64  # streams; there may be thousands
    commits_together: int = 4  # listeners; sixteen hold Kafka up for others, by milliseconds
    commit_pauses_max: int = 48  # in one checkpoint: with more commits, more go together
    commit_pause_s: float = 0.02
    idle_commit_pause_s: float = 0.005  # shorter: checkpoints wait for it
    idle_checkpoint_s: float = 60.0  # the age of an idle listener's committed offset; a commit keeps it from expiring
    conditions_at_once: int = 16  # dispatchers whose lag is reckoned for the metrics; there may be thousands

    # The fence (fence.py)
    sure_s: float = SESSION_TIMEOUT_MS / 1000 - 1.0  # Kafka gives no partition away sooner after an answer
    ask_s: float = (SESSION_TIMEOUT_MS / 1000 - 1.0) / 3  # so that nobody waits for an answer, while there are any
    ask_look_s: float = 1.0

    # Take-over and hand-over (worker.py)
    tail_backlog_max: int = 10_000  # a stream further behind does not hold the tail back: it catches up
    no_cursor_ms: int = 180_000  # the age of a listener before a missing cursor is worth a warning; idle ones take 60 s
    load_pause_s: float = 0.5  # before a take-over that Kafka failed is tried again
    opened_at_once: int = 20  # dispatchers added: opening their secrets takes time
    drain_s: float = 5.0  # for attempts under way at the end of the process
    hand_over_s: float = 2.0  # and at a hand-over, for which all workers wait
    hanging_s: float = 1.0  # an attempt as old as this is not waited for at a hand-over, nor at the end if it fails
    last_checkpoint_s_max: float = 5.0  # with drain_s, less than the group waits for a member

    # Changes of messages (changes/)
    answer_s: float = 3.0  # for an attempt under way; then what it came to is `unknown`
    answer_look_s: float = 0.02
    prune_s: float = 10.0
    changes_many: int = 1_000_000  # about 200 MB: worth a line in the log
    change_pause_s: float = 0.2  # before a changed message that Kafka did not give is read again
    texts_max: int = 16  # changed messages kept, so that all listeners share one

    # Housekeeping (housekeeping/)
    ended_look_s: float = 60.0
    ended_again_s: float = 5.0  # after something was found or Kafka failed: another worker may be behind
    replay_look_s: float = 1.0
    retention_look_s: float = 600.0
    set_aside_listeners: int = 4  # that retention has set aside at once: 64 messages, or 1 MiB, of each
    set_aside_s: float = 10.0  # of one listener, before other listeners are served
    set_aside_look_s: float = 0.05


TUNED: Final = Tuning()
