"""Every try that was begun, in a file beside the report that grows: a driver that is killed hides none.

A try stands here from its beginning as one that never ended, and again when it came to nothing. What ended in an outcome is sealed with
it, so the file goes when the report is complete. It outlives the process, not the power: it is not synced.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness import codec
from harness.errors import FailureError
from harness.model import Attempt, Job

__all__ = ["Tries"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    name: str
    job: str  # its digest
    attempt: Attempt


class Tries:
    """The file of one report that grows."""

    def __init__(self, report: Path) -> None:
        self._path = report.with_suffix(".tries")
        self._fd: int | None = None
        self._past = _read(self._path)

    def past(self, job: Job) -> Mapping[str, Attempt]:
        """Return the tries that earlier drivers of the run made at a job, by their names."""
        return self._past.get(codec.digest(job), {}) if self._past else {}

    def record(self, name: str, job: Job, attempt: Attempt) -> None:
        """Add a try, or how it ended."""
        line = codec.encode(_Line(name=name, job=codec.digest(job), attempt=attempt)) + b"\n"
        try:
            if self._fd is None:
                self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.write(self._fd, line)
        except OSError as err:
            msg = f"cannot write {str(self._path)!r}: {err.strerror}"
            raise FailureError(msg) from err

    def close(self, *, complete: bool = False) -> None:
        """Let go of the file, and remove it where everything in it is sealed."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if complete:
            self._path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, dict[str, Attempt]]:
    """Read the tries of each job; a last line that was cut short is one that had not begun."""
    past: dict[str, dict[str, Attempt]] = {}
    if path.exists():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.truncate(path, len(whole))  # what is added must begin a line
        for text in whole.splitlines():
            line = codec.decode(text, _Line)
            past.setdefault(line.job, {})[line.name] = line.attempt
    return past
