"""What else a price could be: one score, a look-up, a ridge, boosted trees. Each learns from the same cells and answers the same question."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from harness.fitting.cells import Cell
from harness.scoring.sheets import Sheet, sheets
from harness.scoring.tables import table

__all__ = ["BASELINES", "Baseline"]

# From cells to learn from and cells to price, their log prices; None where there is no answer.
Baseline = Callable[[Sequence[Cell], Sequence[Cell]], list[float | None]]

_SEED = 0


def _log(cell: Cell) -> float:
    return math.log(cell.usd_per_gpu_hour)


def _per(score: Callable[[Sheet], float | None], *, by_segment: bool = False) -> Baseline:
    """Return the baseline that asks one price for each unit of a score, perhaps one for each kind of seller."""

    def price(known: Sequence[Cell], asked: Sequence[Cell]) -> list[float | None]:
        rates: dict[str, list[float]] = {}
        for cell in known:
            points = score(sheets()[cell.card])
            if points:
                rates.setdefault(cell.segment if by_segment else "", []).append(_log(cell) - math.log(points))
        answers: list[float | None] = []
        for cell in asked:
            points, found = score(sheets()[cell.card]), rates.get(cell.segment if by_segment else "")
            answers.append(median(found) + math.log(points) if points and found else None)
        return answers

    return price


def _dlperf(sheet: Sheet) -> float | None:
    scores: Mapping[str, float] = table("public_scores")["dlperf"]
    return scores.get(sheet.key)


def _lookup(known: Sequence[Cell], asked: Sequence[Cell]) -> list[float | None]:
    """Ask what others ask for the same card: sellers of the same kind, or others times what that kind asks more or less."""
    by_card: dict[str, dict[str, list[float]]] = {}
    for cell in known:
        by_card.setdefault(cell.card, {}).setdefault(cell.segment, []).append(_log(cell))
    middles = {card: {kind: median(found) for kind, found in kinds.items()} for card, kinds in by_card.items()}
    over = {kind: _over(middles, kind) for kind in ("hyperscaler", "neocloud", "marketplace")}
    answers: list[float | None] = []
    for cell in asked:
        kinds = middles.get(cell.card, {})
        others = [value - over[kind] + over[cell.segment] for kind, value in kinds.items()]
        answers.append(kinds.get(cell.segment) if cell.segment in kinds else median(others) if others else None)
    return answers


def _over(middles: Mapping[str, Mapping[str, float]], kind: str) -> float:
    """Return what a kind of seller asks over a neocloud, in logarithms, over the cards that both have."""
    both = [kinds[kind] - kinds["neocloud"] for kinds in middles.values() if kind in kinds and "neocloud" in kinds]
    return median(both) if both else 0.0


def _rows(cells: Sequence[Cell]) -> list[list[float]]:
    found = []
    for cell in cells:
        sheet = sheets()[cell.card]
        rates = (
            sheet.fp16_flops_per_s,
            sheet.memory_bytes_per_s,
            sheet.memory_bytes,
            sheet.tdp_w,
            sheet.fp32_flops_per_s,
        )
        found.append(
            [
                *(math.log(rate) for rate in rates),
                sheet.launched_year,
                float(sheet.card_class == "datacenter"),
                float(sheet.card_class == "consumer"),
                float(cell.segment == "hyperscaler"),
                float(cell.segment == "marketplace"),
            ]
        )
    return found


def _ridge(known: Sequence[Cell], asked: Sequence[Cell]) -> list[float | None]:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model: Any = make_pipeline(StandardScaler(), Ridge(alpha=3.0))
    model.fit(_rows(known), [_log(c) for c in known])
    return [float(x) for x in model.predict(_rows(asked))]


def _boosting(known: Sequence[Cell], asked: Sequence[Cell]) -> list[float | None]:
    from sklearn.ensemble import HistGradientBoostingRegressor

    model: Any = HistGradientBoostingRegressor(
        max_iter=150,
        learning_rate=0.08,
        max_leaf_nodes=8,
        min_samples_leaf=8,
        l2_regularization=1.0,
        monotonic_cst=[1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        early_stopping=False,
        random_state=_SEED,
    )
    model.fit(_rows(known), [_log(c) for c in known])
    return [float(x) for x in model.predict(_rows(asked))]


BASELINES: Mapping[str, Baseline] = {
    "USD per FP16 TFLOP/s": _per(lambda s: s.fp16_flops_per_s),
    "USD per FP32 TFLOP/s": _per(lambda s: s.fp32_flops_per_s),
    "USD per GB": _per(lambda s: s.memory_bytes),
    "USD per DLPerf point": _per(_dlperf),
    "USD per FP16 TFLOP/s, by kind of seller": _per(lambda s: s.fp16_flops_per_s, by_segment=True),
    "USD per DLPerf point, by kind of seller": _per(_dlperf, by_segment=True),
    "look-up of the same card elsewhere": _lookup,
    "ridge": _ridge,
    "monotone boosting": _boosting,
}
