"""What a challenge asks for in numbers: the parameters, checked, and every size that follows from them.

A stranger's parameters are refused here, before anything is allocated by them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import MisuseError

if TYPE_CHECKING:
    from harness.model import Params

__all__ = ["MODES", "N_MOST", "Task", "kept_fraction", "operations", "scale", "task_of"]

MODES = ("int8", "float16", "bfloat16", "float32", "float64")
N_MOST = 131_056  # the largest multiple of 16 for which no sum of n products of 8-bit numbers leaves 32 bits
_MULTIPLE = 16  # bytes of one call of the generator, and what cuBLAS wants rows to be a multiple of
_LIMITS = {
    "n": (_MULTIPLE, N_MOST),
    "steps": (1, 1 << 16),
    "openings": (1, 1 << 14),
    "scans": (0, 1 << 10),
    "scan_openings": (0, 1 << 14),
}
_OPENED_MOST_BYTES = 1 << 30
_SPREAD = 32.0  # codes to a standard deviation of a sum, to within the nearest power of two
_ENDS_BITS = 0.1
_KEYS_MOST_BYTES = (
    1 << 24
)  # of all scans together, n bytes each: whoever checks them holds them, before anything in the file is judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A chain X -> f(X B) + K of so many steps over matrices of n x n, and how much of it is looked at."""

    mode: str
    n: int
    steps: int
    openings: int
    scans: int
    scan_openings: int

    @property
    def y_bytes(self) -> int:
        """Bytes of one element of a product."""
        return 8 if self.mode == "float64" else 4

    @property
    def binds_sums(self) -> bool:
        """Whether a row's leaf covers its sums, too, by their digest.

        Where a byte keeps too few of their bits: who had computed in a narrower type could otherwise make the opened rows exact afterwards.
        In mode int8 f mixes all bits; with 16-bit operands the bytes differ often enough, and hashing five times as much would take as long as the work.
        """
        return self.mode in {"float32", "float64"}


def scale(n: int) -> float:
    """Return what sums over n products are multiplied by before they are cut to a byte: the power of two nearest to 32 / sqrt(n)."""
    return 2.0 ** round(math.log2(_SPREAD / math.sqrt(n)))


def kept_fraction(task: Task) -> float:
    """Return the least share of a state's bytes that must be kept to give it back: what f(y) holds, since the pad can be drawn again.

    In the float modes f(y) is a normal variable in steps of 1 / (scale sqrt(n)) of its deviation: its entropy, less a little for the ends that are cut.
    """
    if task.mode == "int8":
        return 1.0
    deviation = scale(task.n) * math.sqrt(task.n)
    return (math.log2(deviation * math.sqrt(2 * math.pi * math.e)) - _ENDS_BITS) / 8


def operations(task: Task) -> int:
    """Return the operations of the whole work, two a multiply-add."""
    return 2 * task.n**3 * task.steps


def task_of(params: Params) -> Task:
    """Read a challenge's parameters.

    Raises:
        MisuseError: one is missing, unknown, of another type or out of range; says which and what would be right.
    """
    wanted = {"mode", *_LIMITS}
    if set(params) != wanted:
        msg = f"the parameters of a challenge are {sorted(wanted)}, not {sorted(params)}"
        raise MisuseError(msg)
    if params["mode"] not in MODES:
        msg = f"no mode {params['mode']!r}; there are {', '.join(MODES)}"
        raise MisuseError(msg)
    for name, (least, most) in _LIMITS.items():
        value = params[name]
        if type(value) is not int or not least <= value <= most:
            msg = f"{name} must be a whole number from {least} to {most}, not {value!r}"
            raise MisuseError(msg)
    numbers = {name: int(params[name]) for name in _LIMITS}
    task = Task(mode=str(params["mode"]), **numbers)
    if task.n % _MULTIPLE:
        msg = f"n must be a multiple of {_MULTIPLE}, not {task.n}"
        raise MisuseError(msg)
    if bool(task.scans) != bool(task.scan_openings):
        msg = f"scans and scan_openings are both 0 or neither, not {task.scans} and {task.scan_openings}"
        raise MisuseError(msg)
    if task.scans * task.n > _KEYS_MOST_BYTES:
        msg = f"scans times n must be at most {_KEYS_MOST_BYTES}, not {task.scans} times {task.n}"
        raise MisuseError(msg)
    if opened_most_bytes(task) > _OPENED_MOST_BYTES:
        msg = f"the openings would take {opened_most_bytes(task)} bytes, more than {_OPENED_MOST_BYTES}"
        raise MisuseError(msg)
    return task


def opened_most_bytes(task: Task) -> int:
    """Return how many bytes the openings can take at most, whichever are asked for."""
    path = 32 * ((task.n - 1).bit_length() + (task.steps - 1).bit_length())
    path += 32 * task.binds_sums
    scanned = task.n + path + task.scans * (_GROUP_BYTES + 32 * (task.n * task.steps).bit_length())
    return task.openings * (task.n * (1 + task.y_bytes) + 2 * path) + task.scan_openings * scanned


_GROUP_BYTES = 128  # of sixteen sums of a scan, which share a leaf
