"""How an offer rides in another protocol's document, and comes out of it as it went in.

A view puts the whole envelope where its protocol has room for more, and reading a view back makes the view again from the envelope and compares:
a price, an address or a time that the document shows and the signed offer does not give is found, and said where.
"""

from __future__ import annotations

import re
from typing import Any

from harness.errors import ForgeryError
from harness.market.offers import envelope as envelopes
from harness.market.offers.envelope import Envelope

__all__ = ["KEY", "agree", "at", "carried", "listed", "number", "taken", "text"]

KEY = "harness-quote"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,77}")


def carried(envelope: Envelope) -> dict[str, Any]:
    """Return an envelope as it stands in another document."""
    return envelopes.plain(envelope)


def taken(document: Any, *path: str | int) -> Envelope:
    """Return the envelope that stands at a path of a document.

    Raises:
        ForgeryError: there is none, or it is none.
    """
    return envelopes.of_plain(at(document, *path))


def at(document: Any, *path: str | int) -> Any:
    """Return what stands at a path of a document.

    Raises:
        ForgeryError: nothing does.
    """
    here = "$"
    for step in path:
        here += f"[{step}]" if isinstance(step, int) else f".{step}"
        try:
            document = document[step]
        except (LookupError, TypeError) as err:
            what = "missing"
            raise ForgeryError(what, here) from err
    return document


def text(document: Any, *path: str | int) -> str:
    """Return the text that stands at a path of a document.

    Raises:
        ForgeryError: there is none.
    """
    found = at(document, *path)
    if not isinstance(found, str):
        what = f"{str(found)[:100]!r} is not text"
        raise ForgeryError(what, "$." + ".".join(map(str, path)))
    return found


def listed(document: Any, *path: str | int) -> list[Any]:
    """Return the list that stands at a path of a document.

    Raises:
        ForgeryError: there is none.
    """
    found = at(document, *path)
    if not isinstance(found, list):
        what = "should be a list"
        raise ForgeryError(what, "$." + ".".join(map(str, path)))
    return found


def number(document: Any, *path: str | int) -> int:
    """Return the whole number that stands as decimal text at a path of a document.

    Raises:
        ForgeryError: there is none; a sign, a leading zero or more digits than 2^256 has are none.
    """
    found = text(document, *path)
    if not _NUMBER.fullmatch(found):
        what = f"{found[:100]!r} is not a whole number as text"
        raise ForgeryError(what, "$." + ".".join(map(str, path)))
    return int(found)


def agree(made: Any, given: Any, path: str = "$") -> None:
    """Return if a document is the one that follows from the offer in it.

    Raises:
        ForgeryError: it is not; names the first difference.
    """
    if isinstance(made, dict) and isinstance(given, dict):
        for name in sorted({*made, *given}):
            here = f"{path}.{name}"
            if name not in given or name not in made:
                what = "missing" if name in made else "unknown field"
                raise ForgeryError(what, here)
            agree(made[name], given[name], here)
    elif isinstance(made, list) and isinstance(given, list) and len(made) == len(given):
        for index, (ours, theirs) in enumerate(zip(made, given, strict=True)):
            agree(ours, theirs, f"{path}[{index}]")
    elif made != given or type(made) is not type(given):
        what = f"says {str(given)[:150]!r}; the signed offer gives {str(made)[:150]!r}"
        raise ForgeryError(what, path)
