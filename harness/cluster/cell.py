"""A job on its way to its one outcome: every try at it, what became of each, and whether there is another.

A try: started > its outcome, or one of the ways to end in `RETRIES`, each with its own patience. One whose answer nobody heard (`lost`, or
`aborted` with its driver) may still turn up in a spool; it then counts if it was the last one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from harness.cluster.spool import Reply
from harness.model import Attempt, AttemptEnd, Failed, FailureKind, Job, Outcome, Skipped

__all__ = ["RETRIES", "Cell", "more_tries"]

# How many more tries a job gets, by how one ended. An exception would come again; a crash or a hang may have been chance.
RETRIES: Mapping[AttemptEnd, int] = {
    "wrong_answer": 0,
    "failed": 0,
    "out_of_memory": 0,
    "crashed": 1,
    "timeout": 1,
    "contended": 2,
    "lost": 3,
}
_UNHEARD = frozenset({"lost", "aborted"})
_RUNNING = "the run was killed while it went on, or before its result was on record"
_FOUND = "its answer lay in its node's spool, and counts"


def more_tries(ended: AttemptEnd, tries: int, *, in_company: bool = False) -> bool:
    """Tell whether a job is tried again after so many tries that ended so, this one among them.

    What goes wrong in company may be another job's fault, so it is tried once more, alone; a wrong answer is nobody else's.
    """
    allowed = RETRIES.get(ended, 0)
    if in_company and ended != "wrong_answer":
        allowed = max(allowed, 1)
    return tries <= allowed


@dataclass(slots=True, eq=False)
class Cell:
    """A job and its tries, by their names in the order of their beginning."""

    job: Job
    started: int = 0
    attempts: dict[str, Attempt] = field(default_factory=dict)
    tries: Counter[AttemptEnd] = field(default_factory=Counter)  # by how they ended, before any answer that came late
    over: bool = False

    @classmethod
    def of(cls, job: Job, past: Mapping[str, Attempt]) -> Cell:
        """Take up a job at which earlier drivers of the run made some tries."""
        started = max((attempt.number for attempt in past.values()), default=0)
        return cls(job, started, dict(past), Counter(attempt.ended for attempt in past.values()))

    @property
    def last(self) -> Attempt:
        """The last of its tries that came to nothing."""
        return next(reversed(self.attempts.values()))

    def begin(self, started_at: str, place: str | None) -> Attempt:
        """Begin a try; return what is to be on record should it never end."""
        self.started += 1
        return Attempt(
            number=self.started, started_at=started_at, elapsed_s=0.0, ended="aborted", reason=_RUNNING, place=place
        )

    def note(self, name: str, attempt: Attempt) -> None:
        """Take down how a try came to nothing."""
        self.tries[attempt.ended] += 1
        self.attempts[name] = attempt

    def late(self, name: str, ended: AttemptEnd | None) -> Attempt | None:
        """Take down that a try answered after it was given up; None if it was not, or the answer is the one that was heard."""
        old = self.attempts.get(name)
        if old is None or self.over or old.ended in {ended, "late"}:
            return None
        reason = f"{old.ended}: {old.reason}; its answer came after that and does not count"
        self.attempts[name] = late = replace(old, ended="late", reason=reason)
        return late

    def may_take(self, reply: Reply) -> bool:
        """Tell whether what a spool held counts: only if it was in time and nobody heard it, and no later try has begun."""
        old = self.attempts.get(reply.attempt)
        return old is None or (old.ended in _UNHEARD and old.number == self.started)

    def take(self, reply: Reply) -> None:
        """Take down that a try which had not been heard was found in a spool."""
        old = self.attempts.get(reply.attempt)
        if old is None:  # of a driver that is no more, and so are its notes
            begun = self.begin(reply.started_at, None)
            self.attempts[reply.attempt] = replace(begun, elapsed_s=reply.elapsed_s, reason=f"{_RUNNING}; {_FOUND}")
        else:
            self.tries[old.ended] -= 1  # it did not end so, after all
            self.attempts[reply.attempt] = replace(old, reason=f"{old.reason}; {_FOUND}")

    def end(self, outcome: Outcome) -> Outcome:
        """Return the outcome with every other try on record. There is none after it."""
        self.over = True
        return replace(outcome, attempts=(*outcome.attempts, *self.attempts.values()))

    def fail(self, why: str = "") -> Outcome:
        """Make the last try the outcome."""
        _, last = self.attempts.popitem()
        failed = Failed(
            job=self.job,
            started_at=last.started_at,
            elapsed_s=last.elapsed_s,
            outcome=_kind(last.ended),
            reason="; ".join(filter(None, (last.reason, why))),
        )
        return self.end(Outcome(failed=failed))

    def give_up(self, reason: str) -> Outcome:
        """End a job that waits: as failed if it was tried, else as skipped."""
        if self.attempts:
            return self.fail(f"not tried again: {reason}")
        return self.end(Outcome(skipped=Skipped(job=self.job, reason=reason)))

    def lose(self, reason: str, at: str) -> Outcome:
        """End a job that waits for a device that is not to be had any more: it was to be measured, so that is a failure, tried or not."""
        if self.attempts:
            return self.give_up(reason)
        return self.end(
            Outcome(failed=Failed(job=self.job, started_at=at, elapsed_s=0.0, outcome="lost", reason=reason))
        )


def _kind(ended: AttemptEnd) -> FailureKind:
    match ended:
        case "late":
            return "timeout"
        case "aborted":
            return "lost"
        case _:
            return ended
