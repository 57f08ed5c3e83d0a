"""How far off the model is on prices that it has not seen: a card, a seller, a cell or an architecture at a time is left out.

Covers: nothing about what is left out enters the fit, the sheets of cards aside; an older price of the same cell is left out with it.
Intervals are judged by what was left out elsewhere: the half-width that a prediction gets is a quantile of the errors on other groups.
A split in time asks for today's prices of a model that ends months before, with the intervals that its own day's errors gave. What a fit
chooses, it chooses inside each fold.
Does not cover: how fast the market moves, which was estimated from the very months that the split in time goes over; the choice of the other settings, which were set by hand and looked at with this very table; docs/pricing.md says what that is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from statistics import fmean, median

from harness.errors import MisuseError
from harness.fitting.baselines import BASELINES, Baseline
from harness.fitting.cells import GROUPS, Cell, Snapshot, current, era_of, months_before, shipped_snapshot
from harness.fitting.fit import Settings, fit
from harness.scoring.market_document import Widths
from harness.scoring.market_model import MarketModel

__all__ = ["AHEAD", "SPLITS", "Backtest", "Line", "backtest", "refit"]

OURS, BLEND = "ours", "ridge and boosting, half each"
SPLITS: Mapping[str, Callable[[Cell], str]] = {
    **{f"unseen {name}": key for name, key in GROUPS.items()},
    "unseen cell": lambda cell: f"{cell.provider} {cell.card}",
}
AHEAD = "months ahead"  # not a group: the prices of today by those of the eras before
_PARTS = 40  # the cells are left out a fortieth at a time: one at a time gives the same, and takes five times as long
_CONFIDENCE = 0.8
_NEAR = 0.25
# Standard deviation of the market's movement: 0.24 to 0.45 in logarithms over ten months (2025-11/12 to 2026-09/10), by kind of pair.
_DRIFT_PER_SQRT_MONTH = 0.11


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One model on one split. Errors are absolute, relative to the price; None where it never answers."""

    split: str
    model: str
    asked: int
    answered: int
    median_error_fraction: float | None
    mean_error_fraction: float | None
    near_fraction: float | None  # within a quarter of the price
    covered_fraction: float | None  # of the prices, inside the interval; ours only
    interval_factor: float | None  # the interval is the estimate times and by this


@dataclass(frozen=True, slots=True, kw_only=True)
class Backtest:
    """All lines, and the widths of intervals that follow from the errors."""

    as_of: str
    cells: int
    lines: tuple[Line, ...]
    widths: Widths


Errors = dict[str, list[tuple[str, float | None]]]  # by model: the group of each price, and its log error


def backtest(
    snapshot: Snapshot | None = None,
    *,
    settings: Settings | None = None,
    splits: Iterable[str] = (*SPLITS, AHEAD),
    baselines: Mapping[str, Baseline] = BASELINES,
) -> Backtest:
    """Leave out and predict, for each split, with the model and with each baseline, in one run.

    Raises:
        MisuseError: scikit-learn is not installed, or where one is left out no other is left.
    """
    snapshot = snapshot or shipped_snapshot()
    if lacking := _lacking(snapshot):
        raise MisuseError(lacking)
    errors = {split: _errors(snapshot, split, settings, baselines) for split in splits if split != AHEAD}
    lines = [_line(split, name, found) for split, by_model in errors.items() for name, found in by_model.items()]
    widths = _widths({split: by_model[OURS] for split, by_model in errors.items()})
    if AHEAD in splits:
        lines += _ahead(snapshot, settings, baselines)
    return Backtest(as_of=snapshot.as_of, cells=len(current(snapshot)), lines=tuple(lines), widths=widths)


def refit(snapshot: Snapshot | None = None, *, settings: Settings | None = None) -> tuple[MarketModel, Backtest]:
    """Fit the model to all cells of a snapshot, with the intervals that its backtest gives."""
    snapshot = snapshot or shipped_snapshot()
    tested = backtest(snapshot, settings=settings)
    return fit(snapshot, snapshot.cells, settings, tested.widths), tested


def _errors(snapshot: Snapshot, split: str, settings: Settings | None, baselines: Mapping[str, Baseline]) -> Errors:
    found: Errors = {}
    for group, asked, known in _folds(snapshot, split):
        for name, errors in _errors_of(snapshot, asked, fit(snapshot, known, settings), known, baselines).items():
            found.setdefault(name, []).extend((group, error) for error in errors)
    return found


def _errors_of(
    snapshot: Snapshot,
    asked: Sequence[Cell],
    model: MarketModel,
    known: Sequence[Cell],
    baselines: Mapping[str, Baseline],
) -> dict[str, list[float | None]]:
    """Return the log errors of our model and of each baseline on prices, all of whom know the same other ones."""
    fresh = current(replace(snapshot, cells=tuple(known)))
    answers = {OURS: [_predicted(model, cell) for cell in asked]}
    answers |= {name: baseline(fresh, asked) for name, baseline in baselines.items()}
    if {"ridge", "monotone boosting"} <= set(baselines):
        pairs = zip(answers["ridge"], answers["monotone boosting"], strict=True)
        answers[BLEND] = [(a + b) / 2 for a, b in pairs if a is not None and b is not None]
    truths = [math.log(cell.usd_per_gpu_hour) for cell in asked]
    return {
        name: [None if log is None else log - truth for log, truth in zip(logs, truths, strict=True)]
        for name, logs in answers.items()
    }


def _ahead(snapshot: Snapshot, settings: Settings | None, baselines: Mapping[str, Baseline]) -> Iterator[Line]:
    """Yield the lines of a split in time: today's prices by a model of the eras before, which knows nothing of what came since.

    The interval is the one that a model that old would have given for today, by its errors on prices of its own day. Kinds of seller that
    were not priced then are not asked.
    """
    past = [c for c in snapshot.cells if era_of(months_before(snapshot.as_of, c.date))]
    as_of = max((c.date for c in past if c.exact_date), default="")
    known = [c for c in past if c.date <= as_of]
    asked = [c for c in current(snapshot) if c.segment in {k.segment for k in known}]
    then = replace(snapshot, as_of=as_of, cells=tuple(known))
    if not asked or _lacking(then):
        return
    widths = _widths({split: _errors(then, split, settings, {})[OURS] for split in SPLITS})
    model = fit(then, known, settings, widths)
    today = date.fromisoformat(snapshot.as_of)
    held, factors = [], []
    for cell in asked:
        features = model.features_of(cell.card)
        told = features and model.estimate(
            features, segment=cell.segment, provider=cell.provider, gpu_name=cell.card, at=today
        )
        if told and told.low is not None and told.high is not None:
            held.append(told.low <= math.log(cell.usd_per_gpu_hour) <= told.high)
            factors.append(math.exp((told.high - told.low) / 2))
    for name, errors in _errors_of(then, asked, model, known, baselines).items():
        line = _line(AHEAD, name, [("", error) for error in errors])
        yield replace(line, covered_fraction=fmean(held), interval_factor=median(factors)) if name == OURS else line


def _lacking(snapshot: Snapshot) -> str | None:
    """Return why nothing can be left out of a snapshot, or None."""
    cells = current(snapshot)
    counts = {name: len({key(cell) for cell in cells}) for name, key in GROUPS.items()}
    if min(counts.values(), default=0) > 1:
        return None
    told = ", ".join(f"{name}s: {count}" for name, count in counts.items())
    return f"prices of two sellers, two cards and two architectures are needed, so that each can be left out; there are {told}"


def _folds(snapshot: Snapshot, split: str) -> Iterable[tuple[str, list[Cell], list[Cell]]]:
    """Yield each group with its current cells, and all cells of all ages that have no part in it."""
    key, cells = SPLITS[split], sorted(current(snapshot), key=lambda c: (c.provider, c.card))
    groups: dict[str, list[Cell]] = {}
    for number, cell in enumerate(cells):
        groups.setdefault(str(number % _PARTS) if split == "unseen cell" else key(cell), []).append(cell)
    for group, asked in groups.items():
        out = {key(cell) for cell in asked}
        yield group, asked, [cell for cell in snapshot.cells if key(cell) not in out]


def _predicted(model: MarketModel, cell: Cell) -> float | None:
    features = model.features_of(cell.card)
    if features is None:
        return None
    at = date.fromisoformat(model.document.as_of)
    return model.estimate(features, segment=cell.segment, provider=cell.provider, gpu_name=cell.card, at=at).log_price


def _line(split: str, model: str, errors: Sequence[tuple[str, float | None]]) -> Line:
    known = [(group, error) for group, error in errors if error is not None]
    relative = [abs(math.expm1(error)) for _, error in known]
    covered = _covered(known) if model == OURS and len({group for group, _ in known}) > 1 else None
    return Line(
        split=split,
        model=model,
        asked=len(errors),
        answered=len(known),
        median_error_fraction=median(relative) if relative else None,
        mean_error_fraction=fmean(relative) if relative else None,
        near_fraction=fmean(error <= _NEAR for error in relative) if relative else None,
        covered_fraction=covered,
        interval_factor=math.exp(_quantile([error for _, error in known])) if model == OURS else None,
    )


def _covered(errors: Sequence[tuple[str, float]]) -> float:
    """Return the share of prices inside the interval that the errors on all other groups give."""
    halves = {g: _quantile([error for other, error in errors if other != g]) for g in {group for group, _ in errors}}
    return fmean(abs(error) <= halves[group] for group, error in errors)


def _quantile(errors: Sequence[float]) -> float:
    """Return the conformal quantile of absolute errors: the one that holds for one more price with the confidence asked."""
    ordered = sorted(map(abs, errors))
    return ordered[min(math.ceil((len(ordered) + 1) * _CONFIDENCE), len(ordered)) - 1]


def _widths(errors: Mapping[str, Sequence[tuple[str, float | None]]]) -> Widths:
    halves = {split: _quantile([e for _, e in found if e is not None]) for split, found in errors.items()}
    known = halves.get("unseen cell", math.nan)
    card, seller = max(halves.get("unseen card", known), known), max(halves.get("unseen seller", known), known)
    return Widths(
        confidence_fraction=_CONFIDENCE,
        known=_six(known),
        unseen_card=_six(card),
        unseen_seller=_six(seller),
        unseen_both=_six(math.hypot(seller, math.sqrt(card**2 - known**2))),
        unseen_architecture=_six(max(halves.get("unseen architecture", card), card)),
        drift_per_sqrt_month=_DRIFT_PER_SQRT_MONTH,
    )


def _six(value: float) -> float:
    return round(value, 6)
