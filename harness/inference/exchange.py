"""The nouns of serving: what is asked, what arrives, and what is kept of it.

Times are seconds of the event loop's clock, which on Linux is the one that `time.perf_counter` reads. A kept exchange counts them from
the beginning of its run.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Event", "Exchange", "Request", "Server", "Usage", "apportion"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt, as text or as token ids, and how many tokens of reply are asked for."""

    index: int
    prompt: str | tuple[int, ...]
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a server says it counted. A claim: `audit` holds it against what arrived."""

    input_tokens: int | None
    output_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that arrived: content, the reason of the end, the count of tokens, or none of them (a chunk that names a role)."""

    at_s: float
    text: str = ""
    token_count: int | None = None  # of this event alone, where the server tells
    finish: str | None = None
    usage: Usage | None = None


class Server(Protocol):
    """Whatever answers requests: an endpoint, our own engine, an adapter."""

    def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """Send a request and yield what arrives, each event stamped as early as this process can know of it.

        Raises `FailureError` where the reply breaks off or is none.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and its reply, as they were seen. `chunks_s` holds chunks with content only."""

    index: int
    intended_s: float  # when it should have been sent, whoever was late
    sent_s: float | None  # None: it waited for its turn until its time was over
    chunks_s: tuple[float, ...]
    chunk_tokens: tuple[int, ...] | None  # tokens in each chunk; None: one in each
    ended_s: float
    asked_tokens: int
    usage: Usage | None
    finish: str | None
    text_bytes: int
    text_sha256: str
    failure: str | None  # why there is no whole reply

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens in each chunk."""
        return self.chunk_tokens or (1,) * len(self.chunks_s)

    @property
    def output_tokens(self) -> int:
        """Tokens of the reply: what the server claims, or the number of chunks where it claims fewer or nothing."""
        return sum(self.chunk_tokens) if self.chunk_tokens else len(self.chunks_s)


def apportion(total: int | None, told: Sequence[int | None], sizes: Sequence[int]) -> tuple[int, ...] | None:
    """Return how many tokens each chunk of a reply holds, or None for one in each.

    Where the server told it for every chunk, that. Else the total is shared out by the chunks' sizes in bytes, at least one token to each,
    largest remainders first. A total below the number of chunks is not believed: a chunk with content holds a token.

    Args:
        total: tokens of the reply as the server counts them; None where it does not.
        told: tokens of each chunk, where the server tells.
        sizes: bytes of each chunk.
    """
    count = len(sizes)
    known = [k for k in told if k is not None]
    if count and len(known) == count and min(known) > 0:
        return None if set(known) == {1} else tuple(known)
    if total is None or total <= count or not count:
        return None
    spare, weights = total - count, sizes if any(sizes) else (1,) * count
    shares = [spare * weight / sum(weights) for weight in weights]
    floors = [int(share) for share in shares]
    order = sorted(range(count), key=lambda j: floors[j] - shares[j])
    for j in order[: spare - sum(floors)]:
        floors[j] += 1
    return tuple(1 + extra for extra in floors)
