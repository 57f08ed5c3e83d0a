"""What choosing the market model's settings is worth: chosen inside each fold, by inner folds alone, against the shipped ones.

    python benchmarks/market_nested.py

For each part that is left out, each set of settings predicts four parts by card and four by seller of what remains; the set
with the least median error, the mean of both ways, is fitted to all that remains and predicts what was left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from harness.fitting.backtest import _predicted
from harness.fitting.cells import Cell, current, shipped_snapshot
from harness.fitting.fit import Settings, fit
from harness.scoring.sheets import sheets

SETS = (
    Settings(),
    Settings(curve_width=0.5, step_of_segment=0.25),
    Settings(curve_width=1.0, step_of_segment=0.4),
    Settings(name=0.17, seller=0.28),
    Settings(step_of_segment=0.1, line_of_segment=0.1),
)
SNAPSHOT = shipped_snapshot()
WAYS: dict[str, tuple[Callable[[Cell], str], int | None]] = {
    "unseen card": (lambda cell: cell.card, 10),
    "unseen seller": (lambda cell: cell.provider, None),
    "unseen architecture": (lambda cell: sheets()[cell.card].architecture, None),
}


def parts(cells: Sequence[Cell], key: Callable[[Cell], str], count: int | None) -> list[set[str]]:
    """Return the keys of the current cells in `count` parts; each key is a part of its own without."""
    keys = sorted({key(c) for c in cells} & {key(c) for c in current(SNAPSHOT)})
    count = count or len(keys)
    return [set(keys[i::count]) for i in range(count)]


def errors(cells: Sequence[Cell], key: Callable[[Cell], str], out: set[str], settings: Settings) -> list[float]:
    """Return the relative errors on what is left out."""
    model = fit(SNAPSHOT, [c for c in cells if key(c) not in out], settings)
    asked = [c for c in current(SNAPSHOT) if key(c) in out and c in cells]
    told = ((_predicted(model, c), c) for c in asked)
    return [abs(math.exp(log) / float(c.usd_per_gpu_hour) - 1) for log, c in told if log is not None]


def judged(cells: Sequence[Cell], settings: Settings) -> float:
    """Return the mean of a set's median errors by card and by seller."""
    ways = (WAYS["unseen card"][0], WAYS["unseen seller"][0])
    return sum(median(e for out in parts(cells, key, 4) for e in errors(cells, key, out, settings)) for key in ways) / 2


def main() -> None:
    for name, (key, count) in WAYS.items():
        chosen, shipped, picks = [], [], []
        for out in parts(SNAPSHOT.cells, key, count):
            rest = [c for c in SNAPSHOT.cells if key(c) not in out]
            best = min(range(len(SETS)), key=lambda i: judged(rest, SETS[i]))
            picks.append(best)
            chosen += errors(SNAPSHOT.cells, key, out, SETS[best])
            shipped += errors(SNAPSHOT.cells, key, out, SETS[0])
        print(
            f"{name}: chosen inside {median(chosen):.1%}, shipped {median(shipped):.1%}, picks {picks}",
            flush=True,
        )


if __name__ == "__main__":
    main()
