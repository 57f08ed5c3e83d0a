"""The life of a quote as a pure machine: which state may follow which, and what of it moves money.

    DRAFT > EVIDENCED > QUOTED > EXPIRED | SUPERSEDED | WITHDRAWN | ACCEPTED
    ACCEPTED > AUTHORIZED > CAPTURED                        paid upfront: settled before any work
    ACCEPTED > AUTHORIZED > RUNNING > METERED > CAPTURED    paid from escrow: a ceiling is held, what was used is captured
    CAPTURED > CLOSED | DISPUTED > REBENCHMARKED > UPHELD > CLOSED, or REFUNDED
    any step of a payment > VOIDED, where surely nothing moved, or OUTCOME_UNKNOWN, where nobody can say

Promised: no path comes to a state twice, so whatever is written on entering one (a claim, a capture, a dispute) is written once;
OUTCOME_UNKNOWN has no way out: what the chain says of it later is noted beside it, and nothing is ever driven again.
Not promised: that money moved. That is what a facilitator or a chain says; the machine keeps what was said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, get_args

from harness.errors import MisuseError

__all__ = [
    "AGAIN",
    "IN_FLIGHT",
    "NEXT",
    "START",
    "STATES",
    "TERMINAL",
    "State",
    "StateError",
    "holds_device",
    "replay",
    "step",
]

State = Literal[
    "DRAFT",
    "EVIDENCED",
    "QUOTED",
    "EXPIRED",
    "SUPERSEDED",
    "WITHDRAWN",
    "ACCEPTED",
    "AUTHORIZED",
    "RUNNING",
    "METERED",
    "CAPTURED",
    "VOIDED",
    "DISPUTED",
    "REBENCHMARKED",
    "UPHELD",
    "REFUNDED",
    "CLOSED",
    "OUTCOME_UNKNOWN",
]

STATES: tuple[State, ...] = get_args(State)
START: State = "DRAFT"

NEXT: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        "DRAFT": frozenset({"EVIDENCED"}),
        "EVIDENCED": frozenset({"QUOTED"}),
        "QUOTED": frozenset({"EXPIRED", "SUPERSEDED", "WITHDRAWN", "ACCEPTED"}),
        "EXPIRED": frozenset(),
        "SUPERSEDED": frozenset(),
        "WITHDRAWN": frozenset(),
        "ACCEPTED": frozenset({"AUTHORIZED", "VOIDED", "OUTCOME_UNKNOWN"}),
        "AUTHORIZED": frozenset({"RUNNING", "CAPTURED", "VOIDED", "OUTCOME_UNKNOWN"}),
        "RUNNING": frozenset({"METERED", "VOIDED", "OUTCOME_UNKNOWN"}),
        "METERED": frozenset({"CAPTURED", "VOIDED", "OUTCOME_UNKNOWN"}),
        "CAPTURED": frozenset({"CLOSED", "DISPUTED"}),
        "VOIDED": frozenset(),
        "DISPUTED": frozenset({"REBENCHMARKED", "CLOSED"}),  # closed without a verdict: the evaluator stayed silent
        "REBENCHMARKED": frozenset({"UPHELD", "REFUNDED", "OUTCOME_UNKNOWN"}),
        "UPHELD": frozenset({"CLOSED"}),
        "REFUNDED": frozenset(),
        "CLOSED": frozenset(),
        "OUTCOME_UNKNOWN": frozenset(),
    }
)

TERMINAL: frozenset[State] = frozenset(state for state, after in NEXT.items() if not after)

AGAIN: Mapping[State, State] = MappingProxyType(
    {
        "ACCEPTED": "VOIDED",  # nothing had been sent: the payer's authorization is unused
        "AUTHORIZED": "OUTCOME_UNKNOWN",  # the order to settle may have gone out
        "METERED": "OUTCOME_UNKNOWN",  # the order to capture may have
    }
)
"""Where a process that starts again puts what its predecessor left in a payment step."""

IN_FLIGHT: frozenset[State] = frozenset({"ACCEPTED", "AUTHORIZED", "RUNNING", "METERED"})
_FREE: frozenset[State] = frozenset(
    {"DRAFT", "EVIDENCED", "QUOTED", "EXPIRED", "SUPERSEDED", "WITHDRAWN", "VOIDED", "REFUNDED"}
)


class StateError(MisuseError):
    """A quote is not in the state that somebody took it to be in, or does not go from there to where they want it."""


def step(now: State, expected: State, to: State) -> State:
    """Return the state after a transition: compare, then set.

    Raises:
        StateError: the quote is not in the state that was expected, or has no such way out of it.
    """
    if now != expected:
        message = f"the quote is {now}, not {expected}"
        raise StateError(message)
    if to not in NEXT[now]:
        message = (
            f"a quote that is {now} cannot become {to}; it may become {', '.join(sorted(NEXT[now])) or 'nothing else'}"
        )
        raise StateError(message)
    return to


def replay(entered: Iterable[State]) -> State:
    """Return where a quote stands that entered these states in this order, from a draft.

    Raises:
        StateError: one does not follow from the one before it.
    """
    state = START
    for to in entered:
        state = step(state, state, to)
    return state


def holds_device(state: State) -> bool:
    """Tell whether a quote in this state keeps its device from others while its time runs. An unknown outcome does: it may have been paid."""
    return state not in _FREE
