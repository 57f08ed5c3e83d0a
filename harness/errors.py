"""The errors a caller can act on, one class per decision; each carries its exit code.

HarnessError
├── MisuseError      2  the request cannot be met as it was written
├── FailureError     1  the request was fine, carrying it out was not
├── WrongAnswerError 3  a device computed something false
└── ForgeryError     4  a document is damaged, forged or not what it says
"""

from __future__ import annotations

__all__ = ["FailureError", "ForgeryError", "HarnessError", "MisuseError", "WrongAnswerError"]


class HarnessError(Exception):
    """Anything this package raises on purpose."""

    exit_code = 1


class MisuseError(HarnessError):
    """The request names something that does not exist or is out of range."""

    exit_code = 2


class FailureError(HarnessError):
    """A correct request could not be carried out."""

    exit_code = 1


class WrongAnswerError(HarnessError):
    """A device returned a wrong result."""

    exit_code = 3


class ForgeryError(HarnessError):
    """A document is malformed, damaged or forged; `path` says where, in JSONPath form."""

    exit_code = 4

    def __init__(self, what: str, path: str = "$") -> None:
        super().__init__(f"{path}: {what}")
        self.path = path
        self.what = what
