"""NVML calls that are made 20 times a second: prepared once, made in one go, and understood later.

pynvml looks up the function, makes a buffer and wraps the result at every call, and a struct for every field. That is too much beside a
benchmark, and after a pause of 50 ms all code runs from a cold cache, at ten times its usual cost. So what is done while something is
being timed is the calls alone; what they answered is taken apart when somebody asks. What is called stays NVML's own C interface,
through the library that pynvml has opened; this module opens nothing.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["FUNCTION_NOT_FOUND", "LOST", "Answers", "Pair", "Panel", "Question"]

_Nvml = Any  # the pynvml module, which has no types
_Gpu = Any  # its handle of a device
_Value = Any  # what a sensor says, in the unit of TelemetrySample
Pair = tuple[int, int]

# NVML's return codes are part of its ABI, as are the numbers of fields, clocks and counters.
FUNCTION_NOT_FOUND = 13
LOST = frozenset({1, 9, 15, 16, 18})  # uninitialised, driver not loaded, GPU lost, reset required, versions differ

_PAIRS = {False: struct.Struct("2I"), True: struct.Struct("2Q")}
_ROOM = 16  # bytes for a pair of either kind
_FIELD_VALUE = struct.Struct("IIqqIi8s")  # nvmlFieldValue_t: field, scope, time stamp, latency, type, code, value
_VALUE_TYPES = "dILQqiH"  # in the order of NVML_VALUE_TYPE_*
_GPU_SCOPE = 0  # a Grace module has scopes for the whole of it and for its memory, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A sensor, and what to call for it: functions of NVML, each with the numbers it takes beside the GPU.

    Each call answers with one or two whole numbers, C's `unsigned long long` if `wide`, else `unsigned`; `told` makes the sensor's
    value of the pairs. A `seldom` question is asked only when all are.
    """

    calls: Sequence[tuple[Any, ...]]
    told: Callable[[Sequence[Pair]], _Value]
    wide: bool = False
    seldom: bool = False


class Answers(NamedTuple):
    """What a panel's calls returned, NVML's code of each, and what they wrote."""

    codes: Sequence[int]
    raw: bytes

    @property
    def lost(self) -> int | None:
        """The first code that says the GPU or its driver is gone; None if none does."""
        return next((code for code in self.codes if code in LOST), None)


class Panel:
    """The questions to one GPU, and the fields that one call reads together."""

    def __init__(self, nvml: _Nvml, gpu: _Gpu, questions: Mapping[str, Question], fields: Collection[int] = ()) -> None:
        """Prepare the calls: those for fields first, those asked seldom last."""
        self._fields = fields
        self._questions = dict(sorted(questions.items(), key=lambda item: item[1].seldom))
        blank = b"".join(_FIELD_VALUE.pack(field, _GPU_SCOPE, 0, 0, 0, 0, b"") for field in fields)
        count = sum(len(q.calls) for q in questions.values())
        self._buffer = ctypes.create_string_buffer(blank, len(blank) + _ROOM * count)
        free = ctypes.addressof(self._buffer)
        calls = (
            [(_function(nvml, "nvmlDeviceGetFieldValues"), (gpu, len(fields), ctypes.c_void_p(free)))] if fields else []
        )
        free += len(blank)
        often = 0
        for question in self._questions.values():
            for name, *numbers in question.calls:
                calls.append((_function(nvml, name), (gpu, *numbers, ctypes.c_void_p(free))))
                free += _ROOM
            often = often if question.seldom else len(calls)
        self._calls, self._often = calls, calls[:often]

    def ask(self, *, seldom: bool = True) -> Answers:
        """Make the calls now; without `seldom` only those for the questions that are asked each time."""
        calls = self._calls if seldom else self._often
        return Answers([function(*arguments) for function, arguments in calls], self._buffer.raw)

    def told(self, answers: Answers) -> dict[str, _Value]:
        """Return what each sensor said. One that was not asked, or gave no answer, is missing."""
        codes, offset = list(answers.codes[bool(self._fields) :]), _FIELD_VALUE.size * len(self._fields)
        values = {}
        for name, question in self._questions.items():
            own, codes = codes[: len(question.calls)], codes[len(question.calls) :]
            ends = range(offset, offset + _ROOM * len(question.calls), _ROOM)
            offset = ends.stop
            if own and not any(own):
                values[name] = question.told([_PAIRS[question.wide].unpack_from(answers.raw, at) for at in ends])
        return values

    def fields(self, answers: Answers) -> tuple[dict[int, float], dict[int, int]]:
        """Return the values of the fields that answered, and NVML's code of each that did not."""
        values: dict[int, float] = {}
        refused: dict[int, int] = {}
        of_all = answers.codes[0] if self._fields else 0
        for field, _, _, _, kind, own, value in _FIELD_VALUE.iter_unpack(
            answers.raw[: _FIELD_VALUE.size * len(self._fields)]
        ):
            if code := of_all or own:
                refused[field] = code
            else:
                values[field] = float(struct.unpack_from(_VALUE_TYPES[kind], value)[0])
        return values, refused


def _function(nvml: _Nvml, name: str) -> Callable[..., int]:
    found: Callable[..., int] = getattr(nvml.nvmlLib, name, _missing)
    return found


def _missing(*_: object) -> int:
    """Answer for a function that came after this driver, as pynvml does."""
    return FUNCTION_NOT_FOUND
