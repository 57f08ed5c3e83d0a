"""Numbers and names as a reader wants them, and a stranger's text made harmless to look at."""

from __future__ import annotations

import math
import unicodedata
from decimal import Decimal

from harness.model import Job
from harness.units import Quantity, engineering

__all__ = [
    "binary",
    "label",
    "money",
    "number",
    "percent",
    "shown",
    "signed_percent",
    "tame",
    "told_params",
    "visible",
    "work_name",
]

_MINUS = "\N{MINUS SIGN}"  # as wide as a plus
_TYPES = {
    "fp64": "float64",
    "fp32": "float32",
    "tf32": "TF32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8": "float8",
    "int8": "int8",
}
_WORKS = {"mem": "memory", "p2p": "peer link", "rays": "path tracing", "hash": "hashing"}
_LONGEST = 300  # characters of a text that somebody else chose
_UNSEEN = frozenset(
    {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}
)  # controls, among them those that turn the direction of writing


def visible(text: str) -> str:
    """Return a text without characters that are not seen but do something: a mark stands for each."""
    if text.isprintable():
        return text
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in _UNSEEN else c for c in text)


def tame(text: object, most: int = _LONGEST) -> str:
    """Return a text on one line, of bearable length, and all of it visible."""
    kept = visible(" ".join(str(text)[: 4 * most].split()))
    return kept if len(kept) <= most else f"{kept[: most - 1]}…"


def told_params(job: Job) -> str:
    """Return a job's parameters, and its regime where that is not the usual one."""
    told = " ".join(f"{k}={v}" for k, v in job.params.items())
    return tame(told if job.regime == "burst" else f"{told} {job.regime}".strip())


def label(job: Job) -> str:
    """Name a point in a plot: the benchmark, and of its parameters the values."""
    told = " ".join(str(v) if isinstance(v, str) else f"{k}={binary(v)}" for k, v in job.params.items())
    return tame(f"{job.benchmark} {told}{'' if job.regime == 'burst' else f' {job.regime}'}", 80).strip()


def work_name(work_class: str) -> str:
    """Return a class of work as people call it: memory, float16 products."""
    kind, _, dtype = work_class.partition("_")
    if kind == "gemm":
        return f"{_TYPES.get(dtype, tame(dtype, 20))} products"
    return _WORKS.get(work_class, tame(work_class, 30))


def binary(value: float) -> str:
    """Write a large power of two, or a multiple of one, as people say it: 64 Mi, 128 Ki; other numbers as they are."""
    for scale, prefix, least in ((1 << 30, "Gi", 1), (1 << 20, "Mi", 1), (1 << 10, "Ki", 16)):
        if isinstance(value, int) and value >= least * scale and value % scale == 0:
            return f"{value // scale} {prefix}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """Write four significant digits, or a whole number."""
    if not math.isfinite(value):
        return "?"
    if value and abs(value) < 1e-3:  # noqa: PLR2004 - smaller ones are read more easily with an exponent
        return f"{value:.3g}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"  # noqa: PLR2004 - four digits, or whole


def shown(value: float, unit: str) -> str:
    """Write a value in SI units with a readable prefix: 912.3 GB/s."""
    q = engineering(Quantity(value, tame(unit, 60)))
    return f"{number(q.value)} {q.unit}"


def percent(fraction: float) -> str:
    """Write a fraction in whole per cent, or in tenths where it is small."""
    digits = 1 if abs(fraction) < 0.1 else 0  # noqa: PLR2004 - a digit more below 10 %
    return f"{fraction * 100:.{digits}f} %".replace(".0 %", " %")


def signed_percent(fraction: float) -> str:
    """Write a change in per cent, with its sign."""
    told = percent(abs(fraction))
    sign = "±" if told == percent(0.0) else "+" if fraction > 0 else _MINUS
    return f"{sign}{told}"


def money(usd: Decimal | None) -> str:
    """Write dollars with the digits that a price of their size needs."""
    if usd is None:
        return "unknown"
    if not usd:
        return "0 USD"
    digits = 2 if abs(usd) >= 10 else 4 if abs(usd) >= Decimal("0.01") else 6  # noqa: PLR2004 - about four digits
    return f"{_MINUS if usd < 0 else ''}{abs(usd):,.{digits}f} USD"
