r"""Fit the market model: rising curves with non-negative weights, and crossed effects that are shrunk, in one ridge.

    log p = P w + Z u + e,    w >= 0,    w, u ~ normal with the standard deviations of `Settings`,    e ~ Student's t

The effects u (kind of seller, class, launch, drift, seller, seller by class, name, seller by era, name by era) are marginalised: with V = Z D Z' + noise,
the weights are non-negative least squares of V^-1/2 y on V^-1/2 P with a ridge, and the effects follow as D Z' V^-1 (y - P w): each is shrunk
by how few prices it rests on. Student's t is fitted by reweighting, so that a wild ask pulls little. How much sellers differ by class of
card is chosen among a few values, in each fit anew, by sellers, cards and architectures left out of the prices that it is given. Last, the effects of names are moved by as
little as is needed so that no card is dearer than one of its class that is at least as good in every rate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING, Any

from harness.codec import plain
from harness.fitting.cells import ERAS_MONTHS, GROUPS, Cell, Snapshot, era_of, months_before
from harness.fitting.choice import mean_error
from harness.scoring.market_document import SCHEMA, Axis, Card, Curve, Document, Drift, Segment, Seller, Widths
from harness.scoring.market_model import MarketModel
from harness.scoring.sheets import Sheet, find_sheet, sheets
from harness.scoring.tables import digest_of, table

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]

__all__ = ["Settings", "as_json", "fit"]

AXES = ("fp16_flops_per_s", "memory_bytes_per_s", "memory_bytes")
SEGMENTS: tuple[Segment, ...] = ("hyperscaler", "neocloud", "marketplace")
CLASSES = ("datacenter", "workstation", "consumer")
_CENTRE_YEAR, _YEARS = 2021.0, 2.5
_DRIFT_MONTHS = 6.0
_BROAD = 100.0  # variance of the base: as good as none
_WIDTHS = Widths(  # of a fit alone; `intervals` measures the real ones
    confidence_fraction=0.8,
    known=0.3,
    unseen_card=0.35,
    unseen_seller=0.45,
    unseen_both=0.5,
    unseen_architecture=0.4,
    drift_per_sqrt_month=0.1,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Prior standard deviations in logarithms of a price, and the shape of the curves. Set once, by judgement; see docs/pricing.md."""

    line: float = 0.5
    step: float = 0.5
    line_of_segment: float = 0.3
    step_of_segment: float = 0.3
    knot_count: int = 6
    curve_width: float = 0.7
    launch: float = 0.1
    card_class: float = 0.3
    segment: float = 0.7
    segment_class: float = 0.15
    drift: float = 0.2
    drift_of_class: float = 0.1
    drift_of_segment: float = 0.1
    seller: float = 0.35
    seller_class: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3)  # of these, each fit chooses
    seller_era: float = 0.15
    name: float = 0.12
    name_era: float = 0.1
    noise: float = 0.2
    older_noise: float = 1.5  # variance of an older price, over that of a current one
    lowest_noise: float = 2.0  # variance of a lowest ask, which is an order statistic, over that of a median
    degrees_of_freedom: float = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """One family of effects: a column for each key, with its prior variance."""

    keys: tuple[Any, ...]
    columns: Array
    variance: float


def fit(
    snapshot: Snapshot, cells: Sequence[Cell], settings: Settings | None = None, widths: Widths = _WIDTHS
) -> MarketModel:
    """Fit a model to cells of a snapshot, which may be some of them.

    Raises:
        MisuseError: scikit-learn, which brings NumPy and SciPy, is not installed.
    """
    return _Fit(snapshot, sorted(cells, key=_order), settings or Settings()).model(widths)


def as_json(model: MarketModel) -> str:
    """Return a model as a file that people can compare line by line: one curve, seller or card a line."""
    document = plain(model.document)
    blocks = []
    for name in sorted(document):
        value = document[name]
        if isinstance(value, list) and value:
            lines = ",\n".join("    " + json.dumps(item, sort_keys=True) for item in value)
            blocks.append(f'  "{name}": [\n{lines}\n  ]')
        elif name in {"sellers", "cards"}:
            lines = ",\n".join(
                f"    {json.dumps(key)}: {json.dumps(value[key], sort_keys=True)}" for key in sorted(value)
            )
            blocks.append(f'  "{name}": {{\n{lines}\n  }}')
        else:
            blocks.append(f'  "{name}": {json.dumps(value, sort_keys=True)}')
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def _order(cell: Cell) -> tuple[str, ...]:
    return (cell.provider, cell.card, cell.date, str(cell.usd_per_gpu_hour))


class _Fit:
    """The arrays of one fit."""

    def __init__(self, snapshot: Snapshot, cells: Sequence[Cell], settings: Settings) -> None:
        import numpy as np

        self.snapshot, self.cells, self.s = snapshot, cells, settings
        self.sheets = [sheets()[c.card] for c in cells]
        self.months = np.array([months_before(snapshot.as_of, c.date) for c in cells])
        self.eras = [era_of(m) for m in self.months]
        self.logs = np.array([math.log(c.usd_per_gpu_hour) for c in cells])
        older = np.where(np.array([era != "" for era in self.eras]), settings.older_noise, 1.0)
        lowest = np.where(np.array([c.kinds == ("lowest",) for c in cells]), settings.lowest_noise, 1.0)
        self.noise = settings.noise**2 * older * lowest
        self.axes = _axes({c.card for c in cells})
        self.curves = list(_shapes(self.axes, sorted({c.card for c in cells}), settings))
        self.design = _design(self.curves, self.sheets, self.axes, [c.segment for c in cells], settings)
        self.groups = self._groups()

    def model(self, widths: Widths) -> MarketModel:
        import numpy as np

        weights, a, trust = self._solve()
        self._choose(weights, trust)
        weights, a, _ = self._solve()
        effects = {
            name: dict(zip(g.keys, g.variance * (g.columns.T @ a), strict=True)) for name, g in self.groups.items()
        }
        centre = float(self.logs.mean() + _BROAD * np.sum(a))
        document = self._document(centre, weights, effects, widths)
        return MarketModel.from_json(plain(document))

    def _choose(self, weights: Array, trust: Array) -> None:
        """Choose how much sellers differ by class of card: the least that errs least where sellers, cards or architectures are left out."""
        import numpy as np

        p = self.design[:, weights > 0]
        group, y = self.groups.pop("seller class"), self.logs - self.logs.mean()
        rest = self._covariance() + p @ p.T
        rest[np.diag_indices_from(rest)] += self.noise / trust
        keys = [[key(cell) for cell in self.cells] for key in GROUPS.values()]
        now = np.array([era == "" for era in self.eras])
        errors = {
            deviation: round(mean_error(rest + deviation**2 * (group.columns @ group.columns.T), y, keys, now), 6)
            for deviation in self.s.seller_class
        }
        self.groups["seller class"] = replace(group, variance=min(errors, key=lambda d: (errors[d], d)) ** 2)

    def _covariance(self) -> Array:
        """Return the covariance of the prices by their effects, without noise."""
        import numpy as np

        return _BROAD + sum((g.variance * (g.columns @ g.columns.T) for g in self.groups.values()), np.zeros((1, 1)))

    def _solve(self) -> tuple[Array, Array, Array]:
        """Return the curves' weights, V^-1 of what they leave, and how far each price is trusted."""
        import numpy as np
        from scipy.linalg import cho_solve, cholesky, solve_triangular
        from scipy.optimize import nnls

        p, covariance = self.design, self._covariance()
        y, trust = self.logs - self.logs.mean(), np.ones(len(self.cells))
        ridge, zeros = np.eye(p.shape[1]), np.zeros(p.shape[1])
        for _ in range(6):
            lower = cholesky(covariance + np.diag(self.noise / trust), lower=True)
            whole, target = (solve_triangular(lower, x, lower=True) for x in (p, y))
            weights, _ = nnls(np.vstack([whole, ridge]), np.concatenate([target, zeros]), maxiter=10_000)
            a = cho_solve((lower, True), y - p @ weights)
            left = y - p @ weights - covariance @ a
            nu = self.s.degrees_of_freedom
            trust = (nu + 1) / (nu + left**2 / self.noise)
        return weights, a, trust

    def _groups(self) -> dict[str, _Group]:
        import numpy as np

        s, cells = self.s, self.cells
        kinds, classes = [c.segment for c in cells], [x.card_class for x in self.sheets]
        sellers, names = [c.provider for c in cells], [c.card for c in cells]
        ages = self.months / _DRIFT_MONTHS
        launched = np.array([(x.launched_year - _CENTRE_YEAR) / _YEARS for x in self.sheets])
        past = np.array([era != "" for era in self.eras], dtype=float)
        one = np.ones(len(cells))
        return {
            "launch": _Group(keys=("",), columns=launched[:, None], variance=s.launch**2),
            "class": _group(classes, one, s.card_class),
            "segment": _group(kinds, one, s.segment),
            "segment class": _group(list(zip(kinds, classes, strict=True)), one, s.segment_class),
            "drift": _Group(keys=("",), columns=ages[:, None], variance=s.drift**2),
            "drift class": _group(classes, ages, s.drift_of_class),
            "drift segment": _group(kinds, ages, s.drift_of_segment),
            "seller": _group(sellers, one, s.seller),
            "seller class": _group(list(zip(sellers, classes, strict=True)), one, s.seller_class[0]),
            "seller era": _group(list(zip(sellers, self.eras, strict=True)), past, s.seller_era),
            "name": _group(names, one, s.name),
            "name era": _group(list(zip(names, self.eras, strict=True)), past, s.name_era),
        }

    def _document(
        self, centre: float, weights: Array, effects: Mapping[str, Mapping[Any, float]], widths: Widths
    ) -> Document:
        prior = [_prior(curve, self.s) for curve in self.curves]
        curves = tuple(
            Curve(on=c.on, knot=c.knot, segment=c.segment, weight=_round(w * sd))
            for c, w, sd in zip(self.curves, weights, prior, strict=True)
            if w * sd > 5e-7  # noqa: PLR2004 - what rounding leaves nothing of
        )
        newest = max(sheet.launched_year for sheet in self.sheets)
        return Document(
            schema=SCHEMA,
            as_of=self.snapshot.as_of,
            cells_digest=self.snapshot.digest,
            cards_digest=digest_of("cards"),
            cell_count=len(self.cells),
            base=_round(centre),
            axes=self.axes,
            curve_width=self.s.curve_width,
            curves=curves,
            launch_per_year=_round(effects["launch"][""] / _YEARS),
            launch_centre_year=_CENTRE_YEAR,
            launch_newest_year=_round(newest),
            classes=_rounded(effects["class"]),
            segments=_rounded(effects["segment"]),
            segment_classes={
                s: _rounded({c: v for (k, c), v in effects["segment class"].items() if k == s}) for s in SEGMENTS
            },
            segment_class_counts={s: self._counts(s) for s in SEGMENTS},
            drift=Drift(
                all=_round(effects["drift"][""] / _DRIFT_MONTHS),
                segments=_rounded({k: v / _DRIFT_MONTHS for k, v in effects["drift segment"].items()}),
                classes=_rounded({k: v / _DRIFT_MONTHS for k, v in effects["drift class"].items()}),
            ),
            eras_months={name: begins for name, begins in ERAS_MONTHS.items() if name},
            sellers=self._sellers(effects),
            cards=self._cards(curves, effects),
            widths=widths,
        )

    def _counts(self, segment: str) -> dict[str, int]:
        classes = [x.card_class for x, c in zip(self.sheets, self.cells, strict=True) if c.segment == segment]
        return {name: classes.count(name) for name in sorted(set(classes))}

    def _sellers(self, effects: Mapping[str, Mapping[Any, float]]) -> dict[str, Seller]:
        kinds = {c.provider: c.segment for c in self.cells}
        return {
            name: Seller(
                segment=kinds[name],
                effect=_round(effect),
                cell_count=sum(c.provider == name for c in self.cells),
                eras=_rounded({e: v for (n, e), v in effects["seller era"].items() if n == name and e}),
                classes=_rounded({c: v for (n, c), v in effects["seller class"].items() if n == name}),
            )
            for name, effect in effects["seller"].items()
        }

    def _cards(self, curves: Sequence[Curve], effects: Mapping[str, Mapping[Any, float]]) -> dict[str, Card]:
        from harness.fitting.order import in_order

        counts = {key: sum(c.card == key for c in self.cells) for key in sheets()}
        free = {key: effects["name"].get(key, 0.0) for key in sheets()}
        trust = {key: 1 / self.s.name**2 + counts[key] / self.s.noise**2 for key in sheets()}
        held = in_order(free, trust, self._levels(curves, effects))
        return {
            key: Card(
                effect=_round(held[key]),
                cell_count=counts[key],
                eras=_rounded({e: v for (n, e), v in effects["name era"].items() if n == key and e}),
            )
            for key in sheets()
            if counts[key] or abs(held[key]) > 5e-7  # noqa: PLR2004 - what rounding leaves nothing of
        }

    def _levels(self, curves: Sequence[Curve], effects: Mapping[str, Mapping[Any, float]]) -> dict[str, Array]:
        """Return the log price of each sheet at each kind of seller, but for what all cards of its class have in common."""
        import numpy as np

        rows = list(sheets().values())
        weights = np.array([c.weight for c in curves])
        plain_ = replace(self.s, line=1, step=1, line_of_segment=1, step_of_segment=1)
        by_kind = [_design(curves, rows, self.axes, [kind] * len(rows), plain_) @ weights for kind in SEGMENTS]
        launched = np.array([(x.launched_year - _CENTRE_YEAR) / _YEARS * effects["launch"][""] for x in rows])
        levels = np.array(by_kind).T + launched[:, None]
        return {row.key: levels[i] for i, row in enumerate(rows)}


def _group(keys: Sequence[Any], scale: Array, deviation: float) -> _Group:
    import numpy as np

    distinct = tuple(sorted(set(keys)))
    columns = np.array([[key == other for other in distinct] for key in keys], dtype=float) * scale[:, None]
    return _Group(keys=distinct, columns=columns, variance=deviation**2)


def _axes(cards: set[str]) -> dict[str, Axis]:
    """Return the axes: centred and scaled over the cards that have prices, each card once."""
    import numpy as np

    found = {}
    for name in AXES:
        logs = np.array([math.log(getattr(sheets()[card], name)) for card in sorted(cards)])
        found[name] = Axis(
            centre=_round(float(logs.mean())),
            scale=_round(float(logs.std())),
            low=_round(float(logs.min())),
            high=_round(float(logs.max())),
            reach_fraction=_reach(name),
        )
    return found


def _reach(name: str) -> float:
    """Return the share of a sheet's rate that published measurements reach, in the middle of the cards that were measured."""
    quantities = {"fp16_flops_per_s": ("gemm float16",), "memory_bytes_per_s": ("triad", "copy")}.get(name)
    if quantities is None:
        return 1.0
    shares = []
    for card in table("public_ranges")["cards"]:
        sheet = next((s for s in map(find_sheet, card["names"]) if s), None)
        lows = [row["low"] for row in card["ranges"] if row["quantity"] in quantities]
        if sheet and lows:
            shares.append(max(lows) / getattr(sheet, name))
    return float(round(median(shares), 3))


def _shapes(axes: Mapping[str, Axis], cards: Sequence[str], settings: Settings) -> Iterator[Curve]:
    """Yield the curves, all of weight 1: a line for each rate, steps for each rate and each balanced mix of rates; for all and by seller."""
    import numpy as np

    positions = np.array([[_position(axes, name, sheets()[card]) for name in AXES] for card in cards])
    for kind in (None, *SEGMENTS):
        for name in AXES:
            yield Curve(on={name: 1.0}, weight=1.0, segment=kind)
        for size in range(1, len(AXES) + 1):
            for chosen in combinations(range(len(AXES)), size):
                share = round(1 / math.sqrt(size), 6)
                mixed = positions[:, list(chosen)].sum(axis=1) * share
                for knot in np.quantile(mixed, np.linspace(0.08, 0.92, settings.knot_count)):
                    yield Curve(on={AXES[i]: share for i in chosen}, weight=1.0, knot=_round(float(knot)), segment=kind)


def _prior(curve: Curve, s: Settings) -> float:
    if curve.segment is None:
        return s.line if curve.knot is None else s.step
    return s.line_of_segment if curve.knot is None else s.step_of_segment


def _design(
    curves: Sequence[Curve], rows: Sequence[Sheet], axes: Mapping[str, Axis], kinds: Sequence[str], settings: Settings
) -> Array:
    """Return each curve at each card, times its prior deviation: shape (cards, curves)."""
    import numpy as np

    positions = {name: np.array([_position(axes, name, sheet) for sheet in rows]) for name in axes}
    of_kind = {kind: np.array([k == kind for k in kinds], dtype=float) for kind in SEGMENTS}
    columns = []
    for curve in curves:
        x = sum((share * positions[name] for name, share in curve.on.items()), np.zeros(len(rows)))
        value = x if curve.knot is None else 1 / (1 + np.exp(-(x - curve.knot) / settings.curve_width))
        columns.append(_prior(curve, settings) * value * (of_kind[curve.segment] if curve.segment else 1.0))
    return np.array(columns).T


def _position(axes: Mapping[str, Axis], name: str, sheet: Sheet) -> float:
    return (math.log(getattr(sheet, name)) - axes[name].centre) / axes[name].scale


def _round(value: float) -> float:
    return round(float(value), 6) + 0.0  # six digits are a millionth of a price; + 0.0: no minus zero


def _rounded(effects: Mapping[Any, float]) -> dict[str, float]:
    return {str(key): _round(value) for key, value in effects.items()}
