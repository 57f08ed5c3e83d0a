"""What a scheduler is told, and what it says: its lanes, the events that may come in any order, and the commands that follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.cluster.spool import Reply
from harness.model import Attempt, DeviceKind, Job, Outcome

__all__ = [
    "Acquire",
    "Broke",
    "Command",
    "Ended",
    "Event",
    "Gone",
    "Lane",
    "Leased",
    "Patience",
    "Ping",
    "Ponged",
    "Refused",
    "Release",
    "Replied",
    "Seen",
    "Spent",
    "Start",
    "Tried",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for what, and how much to put up with."""

    lease_s: float = 90.0
    grace_s: float = 15.0  # a lease enforces a job's deadline itself; past this much more it is suspect
    ping_s: float = 5.0
    rejoin_s: float = 120.0  # for a lost device to be seen again
    backoff_s: float = 1.0
    backoff_most_s: float = 30.0
    leasing_most: int = 8  # at a time: a burst of new workers makes Ray miss its own deadlines
    bad_most: int = 3  # tries in a row that broke


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One device and its jobs, cut into batches that are measured together."""

    key: str
    host: str
    kind: DeviceKind
    batches: tuple[tuple[Job, ...], ...]
    place: str | None = None
    width: int | None = None  # devices of its host that may be at work at the same time
    hindrance: Callable[[Job], str | None] = lambda _: None  # why not to measure a job here
    allowed_s: Callable[[Sequence[Job]], float] = lambda _: 60.0
    past: Callable[[Job], Mapping[str, Attempt]] = (
        lambda _: {}
    )  # tries that an earlier driver of the run made, by their names


# --- what can happen -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Leased:
    """A device is ours; `recovered` is what it had measured and nobody had heard."""

    lane: str
    recovered: tuple[Reply, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """A device can never be had."""

    lane: str
    reason: str


@dataclass(frozen=True, slots=True)
class Replied:
    """A try was answered, perhaps one that had been given up."""

    lane: str
    reply: Reply


@dataclass(frozen=True, slots=True)
class Broke:
    """A call to a lease ended in an error. `attempt` is none where it was to acquire the lease."""

    lane: str
    attempt: str | None
    how: Literal["lost", "crashed"]
    reason: str


@dataclass(frozen=True, slots=True)
class Ponged:
    """A lease lives."""

    lane: str


@dataclass(frozen=True, slots=True)
class Gone:
    """The node of a device has left."""

    lane: str
    reason: str


@dataclass(frozen=True, slots=True)
class Seen:
    """A device is there, perhaps at another place than before."""

    lane: str
    place: str | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """Nothing new may be started any more."""

    reason: str


Event = Leased | Refused | Replied | Broke | Ponged | Gone | Seen | Spent


# --- what is to be done --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Acquire:
    """Get a lease of a device, and collect what its spool holds."""

    lane: str


@dataclass(frozen=True, slots=True)
class Start:
    """Have a batch measured."""

    lane: str
    attempt: str
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask a lease whether it lives."""

    lane: str


@dataclass(frozen=True, slots=True)
class Release:
    """Give a device back, ending whatever its lease still does; one that was lost may live on, and is not waited for."""

    lane: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """A job has its outcome."""

    lane: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Tried:
    """Put a try on record: when it begins, as one that never ended, and again when it has come to nothing."""

    lane: str
    name: str
    job: Job
    attempt: Attempt


Command = Acquire | Start | Ping | Release | Ended | Tried
