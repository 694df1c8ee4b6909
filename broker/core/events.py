"""All events of the log: facts, named in the past tense.

For: importing every event from one module. A class may be renamed, but its wire name and its fields never change. To
change fields, add a version with an upcaster (codec.py) and a golden record in tests/golden. Not for: what an event
changes (directory.py), where it is stored (broker/kafka/topics.py).
"""

from __future__ import annotations

from broker.core.account_events import (
    AccountBlocked,
    AccountCreated,
    AccountDeleted,
    AccountEvent,
    AccountIdentityLinked,
    AccountIdentityUnlinked,
    AccountPasswordChanged,
    AccountPasswordReset,
    AccountSessionsEnded,
    AccountUnblocked,
    InvitationAccepted,
    InvitationCreated,
    InvitationEvent,
    InvitationRevoked,
    KeyCreated,
    KeyRevoked,
    KeyUsed,
    MemberRoleChanged,
    OrganizationCreated,
    OrganizationJoined,
    OrganizationLeft,
    SessionCreated,
    SessionEnded,
    VolumeRecorded,
)
from broker.core.alert_events import AlertCleared, AlertEvent, AlertRaised, AlertThresholds, AlertTold, QueueAlertsSet
from broker.core.control_events import (
    BatchSetting,
    ControlEvent,
    ListenerCreated,
    ListenerDeleted,
    ListenerPaused,
    ListenerRedriven,
    ListenerRedrivesCancelled,
    ListenerResealed,
    ListenerResumed,
    ListenerSecretRotated,
    ListenerSettings,
    ListenerUpdated,
    LogDamaged,
    LogMended,
    QueueCreated,
    QueueDeleted,
    QueueRenamed,
    ReplayAdvanced,
    ReplayCancelled,
    ReplayEvent,
    ReplayPaused,
    ReplayResumed,
    ReplayStarted,
)
from broker.core.event import Event
from broker.core.message_events import (
    BARE,
    DAMAGED,
    UNDECODABLE,
    AnsweredAttempt,
    AnswersKept,
    ChangeApplied,
    DeliveriesSettled,
    DeliveryAttempted,
    DeliveryParked,
    DeliverySetAside,
    KeptAnswer,
    KeptDelivery,
    ListenerTested,
    MessageChange,
    MessageDeleted,
    MessagePut,
    MessageUpdated,
    PartitionHandedOver,
    PartitionTakenOver,
    PutClaimed,
    StatisticsCounted,
    StatisticsRow,
)

__all__ = [
    "BARE",
    "DAMAGED",
    "UNDECODABLE",
    "AccountBlocked",
    "AccountCreated",
    "AccountDeleted",
    "AccountEvent",
    "AccountIdentityLinked",
    "AccountIdentityUnlinked",
    "AccountPasswordChanged",
    "AccountPasswordReset",
    "AccountSessionsEnded",
    "AccountUnblocked",
    "AlertCleared",
    "AlertEvent",
    "AlertRaised",
    "AlertThresholds",
    "AlertTold",
    "AnsweredAttempt",
    "AnswersKept",
    "AnyEvent",
    "BatchSetting",
    "ChangeApplied",
    "ControlEvent",
    "DeliveriesSettled",
    "DeliveryAttempted",
    "DeliveryParked",
    "DeliverySetAside",
    "Event",
    "InvitationAccepted",
    "InvitationCreated",
    "InvitationEvent",
    "InvitationRevoked",
    "KeptAnswer",
    "KeptDelivery",
    "KeyCreated",
    "KeyRevoked",
    "KeyUsed",
    "ListenerCreated",
    "ListenerDeleted",
    "ListenerPaused",
    "ListenerRedriven",
    "ListenerRedrivesCancelled",
    "ListenerResealed",
    "ListenerResumed",
    "ListenerSecretRotated",
    "ListenerSettings",
    "ListenerTested",
    "ListenerUpdated",
    "LogDamaged",
    "LogMended",
    "MemberRoleChanged",
    "MessageChange",
    "MessageDeleted",
    "MessagePut",
    "MessageUpdated",
    "OrganizationCreated",
    "OrganizationJoined",
    "OrganizationLeft",
    "PartitionHandedOver",
    "PartitionTakenOver",
    "PutClaimed",
    "QueueAlertsSet",
    "QueueCreated",
    "QueueDeleted",
    "QueueRenamed",
    "ReplayAdvanced",
    "ReplayCancelled",
    "ReplayEvent",
    "ReplayPaused",
    "ReplayResumed",
    "ReplayStarted",
    "SessionCreated",
    "SessionEnded",
    "StatisticsCounted",
    "StatisticsRow",
    "VolumeRecorded",
]

AnyEvent = (
    ControlEvent
    | MessagePut
    | PutClaimed
    | MessageUpdated
    | MessageDeleted
    | ChangeApplied
    | PartitionTakenOver
    | PartitionHandedOver
    | AnswersKept
    | ListenerTested
    | DeliveriesSettled
    | DeliveryAttempted
    | DeliverySetAside
    | DeliveryParked
    | StatisticsCounted
)
