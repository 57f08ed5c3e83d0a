"""JSON that a stranger wrote: as Python reads it, but never deeper than a document of ours could be.

`json.loads` recurses in C for each level. What stops it is Python's limit on recursion, which a program around us may have raised, as Hypothesis does;
then 100 kB of brackets end the process. So depth is counted first, without recursion.
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["loads"]

_DEPTH_MOST = 100
_STRINGS = re.compile(
    r'"(?:[^"\\]|\\.)*+"?', re.DOTALL
)  # one that does not end reaches to the end, so that no text is read twice
_NOT_BRACKETS = re.compile(r"[^][{}]+")


def loads(text: str | bytes, **options: Any) -> Any:
    """Return what a document says; `options` are those of `json.loads`.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested deeper than 100 levels.
    """
    told = text.decode() if isinstance(text, bytes) else text
    depth = 0
    for bracket in _NOT_BRACKETS.sub("", _STRINGS.sub("", told)):
        depth += 1 if bracket in "[{" else -1
        if depth > _DEPTH_MOST:
            message = f"nested deeper than {_DEPTH_MOST} levels"
            raise ValueError(message)
    return json.loads(told, **options)
