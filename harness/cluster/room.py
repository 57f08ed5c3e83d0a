"""How large a report may grow, so that it is still read in seconds, and how much of that each outcome takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from harness import codec

__all__ = ["Size", "least", "most"]

_SEAL_BYTES = len('"",') + 64  # that an outcome takes in the seal, beside its own


def _values(data: bytes) -> int:
    """Count a document's values as its decoder does."""
    return data.count(b",") + data.count(b"\\")


@dataclass(frozen=True, slots=True)
class Size:
    """How much a part of a report takes of what a whole one may."""

    length_bytes: int = 0
    value_count: int = 0

    @classmethod
    def of_report(cls, report: bytes) -> Self:
        """Return what a whole report takes."""
        return cls(len(report), _values(report))

    @classmethod
    def of(cls, outcome: bytes) -> Self:
        """Return what an outcome takes, with its digest in the seal."""
        return cls(len(outcome) + _SEAL_BYTES, _values(outcome) + 2)

    def __add__(self, other: Size) -> Size:
        return Size(self.length_bytes + other.length_bytes, self.value_count + other.value_count)

    def __sub__(self, other: Size) -> Size:
        return Size(self.length_bytes - other.length_bytes, self.value_count - other.value_count)

    def within(self, other: Size) -> bool:
        """Tell whether it takes no more than another."""
        return self.length_bytes <= other.length_bytes and self.value_count <= other.value_count


_FAILURE = Size(300, 8)  # what the outcome that says that there is no more room takes beside its job; a test counts it


def most() -> Size:
    """Return what a report may take."""
    return Size(codec.MAX_BYTES, codec.MAX_VALUES - 1)


def least(job: bytes) -> Size:
    """Return what the outcome of a job takes at least, given the job's bytes: the failure for which there is always room."""
    return Size.of(job) + _FAILURE
