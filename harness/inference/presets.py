"""Which models to measure on how much memory, and in which format: the same on all cards of a size, so that their results compare.

A model is named with its format and, where only some of its layers are run, their number: "llama-3.1-8b:int8", "llama-3.3-70b/12:int4".
What a slice takes is not what the model takes: from slices of two lengths `extrapolated` gives an estimate, which says so and is never
ranked.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.errors import MisuseError
from harness.inference import ledger
from harness.inference.quant import refuse_packed
from harness.inference.specs import find, sliced
from harness.registry import cache_bytes

if TYPE_CHECKING:
    from harness.inference.specs import ModelSpec
    from harness.model import Device

__all__ = [
    "CLASSES",
    "CONTEXT",
    "WORKSPACE_BYTES",
    "Choice",
    "Estimate",
    "Role",
    "choice",
    "choose",
    "dense_on",
    "extrapolated",
    "fit",
    "fits",
    "for_device",
    "mixture_on",
    "needed_bytes",
    "small_on",
]

Role = Literal["primary", "second", "moe"]

WORKSPACE_BYTES = 1_000_000_000  # activations, scores, what the libraries take
CONTEXT = 4096  # tokens of one row that must fit, where nothing else is said
_FREE_FRACTION = 0.9
_USABLE_FRACTION = 0.97  # of a card's memory that a fresh process finds free; the driver has the rest
_CLASS_FRACTION = 0.95  # of its nominal memory that a card of a class tells: error correction and firmware take some
_SLICE_LEAST = 2  # layers: fewer are no slice of anything
_SPELLING = re.compile(r"(?P<model>[a-z0-9.-]+)(?:/(?P<layers>[1-9][0-9]*))?:(?P<format>[a-z0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A model in a format; `spec` has the layers that are run, `whole` those the model has."""

    spec: ModelSpec
    weights: ledger.Format
    whole: int
    context: int = CONTEXT

    def __post_init__(self) -> None:
        refuse_packed(self.spec, self.weights.bits)

    @property
    def extrapolated(self) -> bool:
        """Whether only a slice is run, so that figures for the whole model are extrapolated."""
        return self.spec.layers < self.whole

    @property
    def model(self) -> str:
        """The model's name, without the slice."""
        return self.spec.name.partition("[")[0]

    @property
    def text(self) -> str:
        """Its spelling, which `choice` reads."""
        part = f"/{self.spec.layers}" if self.extrapolated else ""
        return f"{self.model}{part}:{self.weights.name}"

    @property
    def item(self) -> str:
        """What one token of it is called in a record: a slice's is no token of the model."""
        return f"token of {self.spec.layers} of {self.whole} layers" if self.extrapolated else "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A time that nobody measured."""

    time_s: float
    label: Literal["extrapolated"] = "extrapolated"


def choice(text: str, context: int = CONTEXT) -> Choice:
    """Read a choice from its spelling.

    Raises:
        MisuseError: it is not one, or names a model, a format or a number of layers that there is not, or a format not of this model.
    """
    found = _SPELLING.fullmatch(text)
    if not found:
        msg = (
            f"{text!r} names no model in a format; llama-3.1-8b:int8 does, and llama-3.1-8b/4:int8 names 4 layers of it"
        )
        raise MisuseError(msg)
    name, weights = found["model"], ledger.format_named(found["format"])
    whole = find(name)
    layers = int(found["layers"] or whole.layers)
    if layers > whole.layers:
        msg = f"{name} has {whole.layers} layers, fewer than the {layers} of {text!r}"
        raise MisuseError(msg)
    spec = whole if layers == whole.layers else sliced(whole, layers)
    return Choice(spec=spec, weights=weights, whole=whole.layers, context=context)


_Row = Mapping[Role, str]  # what to measure in each role, where need be with the context that it must hold


def _row(primary: str, second: str, moe: str | None = None) -> _Row:
    named: dict[Role, str | None] = {"primary": primary, "second": second, "moe": moe}
    return {role: text for role, text in named.items() if text}


# By nominal memory in 10^9 bytes.
CLASSES: Mapping[int, _Row] = {
    4: _row("qwen3-0.6b:fp16", "llama-3.2-1b:int8"),
    6: _row("llama-3.2-1b:fp16", "qwen3-4b:int4"),
    8: _row("llama-3.2-1b:fp16", "qwen3-4b:int8"),
    10: _row("qwen3-4b:fp16@2048", "llama-3.1-8b:int4"),
    12: _row("qwen3-4b:fp16", "llama-3.1-8b:int8"),
    16: _row("llama-3.1-8b:int8", "qwen3-14b:int4"),
    24: _row("llama-3.1-8b:fp16", "qwen3-32b:int4", "qwen3.5-35b-a3b:int4"),
    32: _row("llama-3.1-8b:fp16", "qwen3-32b:int4@32768", "qwen3.5-35b-a3b:int4@32768"),
    48: _row("qwen3-14b:fp16", "llama-3.3-70b:int4", "qwen3.5-35b-a3b:int8"),
    80: _row("qwen3-32b:fp16", "llama-3.3-70b:int4", "qwen3.5-35b-a3b:fp16"),
    96: _row("qwen3-32b:fp16", "llama-3.3-70b:int8", "qwen3.5-35b-a3b:fp16"),
    141: _row("llama-3.3-70b:int8", "mixtral-8x7b:fp16"),
    180: _row("llama-3.3-70b:fp16", "mixtral-8x7b:fp16"),
}
_ON_CPU = ("smollm2-135m/4:fp32", "smollm2-135m:fp32", "qwen3-0.6b:fp32")
_SMALL_MOE = "qwen3-30b-a3b:int4"  # of which as many layers are run as fit


def needed_bytes(chosen: Choice, *, batch: int = 1, context: int | None = None) -> int:
    """Return the bytes that weights, keys and values, DeltaNet state and workspace take."""
    tokens = batch * (chosen.context if context is None else context)
    cache = tokens * int(chosen.spec.kv_bytes_per_token(chosen.weights.value_bytes)) + batch * ledger.state_bytes(
        chosen.spec
    )
    return ledger.weight_bytes(chosen.spec, chosen.weights) + cache + WORKSPACE_BYTES


def fits(chosen: Choice, free_bytes: int, *, batch: int = 1, context: int | None = None) -> bool:
    """Tell whether a choice fits: weights, keys and values and 1 GB of workspace take at most 90 % of what is free."""
    return needed_bytes(chosen, batch=batch, context=context) <= _FREE_FRACTION * free_bytes


def choose(free_bytes: int, role: Role = "primary") -> Choice:
    """Return what to measure on so much free memory: of the largest class that it is in and whose model fits.

    Below all classes, and for a mixture of experts on a card too small for any, it is as many layers as fit.

    Raises:
        MisuseError: not even two layers fit.
    """
    for row in _rows(free_bytes):
        if role in row:
            candidate = _with_context(row[role])
            if fits(candidate, free_bytes):
                return candidate
    small = _SMALL_MOE if role == "moe" else CLASSES[min(CLASSES)][role]
    return fit(choice(small), free_bytes)


def _with_context(text: str) -> Choice:
    name, _, context = text.partition("@")
    return choice(name, int(context or CONTEXT))


def _rows(free_bytes: int) -> Iterator[_Row]:
    """Yield the classes that so much memory is in, the largest first."""
    for nominal in sorted(CLASSES, reverse=True):
        if free_bytes >= _CLASS_FRACTION * nominal * 1e9:
            yield CLASSES[nominal]


def fit(chosen: Choice, free_bytes: int) -> Choice:
    """Return a choice, or as many of its first layers as fit.

    Raises:
        MisuseError: not even two layers fit.
    """
    if fits(chosen, free_bytes):
        return chosen

    def slice_of(layers: int) -> Choice:
        return choice(f"{chosen.model}/{layers}:{chosen.weights.name}", chosen.context)

    candidates = range(_SLICE_LEAST, chosen.spec.layers)
    too_many = bisect.bisect_left(candidates, 1, key=lambda layers: not fits(slice_of(layers), free_bytes))
    if too_many:
        return slice_of(candidates[too_many - 1])
    needed = needed_bytes(slice_of(_SLICE_LEAST))
    msg = (
        f"{_SLICE_LEAST} layers of {chosen.text} take {needed / 1e9:.2f} GB with their cache and workspace; "
        f"{_FREE_FRACTION:.0%} of the {free_bytes / 1e9:.2f} GB that are free may be used"
    )
    raise MisuseError(msg)


def for_device(device: Device, role: Role = "primary") -> Choice:
    """Return what to measure on a GPU, by the memory that its board has."""
    return choose(int((device.memory_bytes or 0) * _USABLE_FRACTION), role)


def dense_on(device: Device) -> str:
    """The dense model that fits."""
    return _text(device, "primary")


def mixture_on(device: Device) -> str:
    """The mixture of experts that fits."""
    return _text(device, "moe")


def _text(device: Device, role: Role) -> str:
    """Return a GPU's choice; where it has too little memory, or does not tell, the smallest: setting it up says what is missing."""
    try:
        return for_device(device, role).text
    except MisuseError:
        return choice(_SMALL_MOE if role == "moe" else CLASSES[min(CLASSES)][role]).text


def small_on(device: Device) -> str:
    """A small dense model that no cache holds."""
    for text in _ON_CPU[:-1]:
        chosen = choice(text)
        if ledger.weight_bytes(chosen.spec, chosen.weights) > 3 * cache_bytes(device):
            return text
    return _ON_CPU[-1]


def extrapolated(short: tuple[int, float], long: tuple[int, float], layers: int) -> Estimate:
    """Return the time of a model of so many layers as a + b x layers, from two slices of it.

    Args:
        short: layers of one slice, and its time in seconds.
        long: the same of another with more layers.
        layers: of the whole model.

    Raises:
        MisuseError: the slices do not differ, or the longer one is not the slower one.
    """
    (few, few_s), (many, many_s) = short, long
    if not 0 < few < many <= layers:
        msg = f"slices of {few} and {many} layers do not lead to {layers}: they must grow in that order"
        raise MisuseError(msg)
    if not 0 < few_s < many_s:
        msg = f"{many} layers took {many_s!r} s, {few} took {few_s!r} s: more layers must take longer"
        raise MisuseError(msg)
    return Estimate(time_s=few_s + (many_s - few_s) / (many - few) * (layers - few))
