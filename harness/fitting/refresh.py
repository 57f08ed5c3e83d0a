"""Fresh offers: into a snapshot to fit, or into an index that moves an older model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from statistics import median

from harness.errors import MisuseError
from harness.fitting.cells import Snapshot, cells_of, shipped_snapshot
from harness.fitting.offers import Offer, Origin, Reading, from_gpuhunt, read_offers
from harness.scoring.anchor import IndexPrint
from harness.scoring.market_model import MarketModel
from harness.scoring.sheets import sheets

__all__ = ["gathered", "index_of", "refresh"]


def gathered(paths: Sequence[str | Path], origin: Origin | None = None, *, gpuhunt: bool = False) -> Reading:
    """Read the offers of all files, and today's of gpuhunt if wanted.

    Raises:
        MisuseError: nothing was given to read, or a file is none of offers.
        FailureError: no offer of a source can be used.
    """
    if not paths and not gpuhunt:
        msg = "nothing to read: give a file of offers, or gpuhunt"
        raise MisuseError(msg)
    readings = [read_offers(Path(path), origin or Origin()) for path in paths]
    if gpuhunt:
        readings.append(from_gpuhunt())
    return Reading(
        offers=tuple(offer for reading in readings for offer in reading.offers),
        left_out=tuple(text for reading in readings for text in reading.left_out),
    )


def refresh(offers: Iterable[Offer], *, alone: bool = False) -> Snapshot:
    """Make a snapshot of offers, on top of the prices that are shipped, or alone.

    Raises:
        FailureError: no offer is left after screening.
    """
    return cells_of(offers, None if alone else shipped_snapshot())


def index_of(offers: Iterable[Offer], model: MarketModel | None = None) -> tuple[IndexPrint, ...]:
    """Return how each class of card is priced now over what the model says of the same sellers and cards.

    Each seller has one say: the median of its log ratios. Whether a print may be used is for `anchor.objection` to say.
    """
    model = model or MarketModel.load()
    ratios: dict[str, dict[str, list[float]]] = {}
    dates: dict[str, str] = {}
    for offer in sorted(set(offers), key=lambda o: (o.provider, o.card, o.date, o.usd_per_gpu_hour)):
        card_class = sheets()[offer.card].card_class
        features = model.features_of(offer.card)
        if features is None or not offer.exact_date:
            continue
        at = date.fromisoformat(model.document.as_of)
        told = model.estimate(features, segment=offer.segment, provider=offer.provider, gpu_name=offer.card, at=at)
        if told.log_price is not None:
            ratio = math.log(offer.usd_per_gpu_hour) - told.log_price
            ratios.setdefault(card_class, {}).setdefault(offer.provider, []).append(ratio)
            dates[card_class] = max(dates.get(card_class, ""), offer.date)
    return tuple(_print(name, dates[name], by_seller) for name, by_seller in sorted(ratios.items()))


def _print(card_class: str, day: str, by_seller: dict[str, list[float]]) -> IndexPrint:
    says = [median(found) for found in by_seller.values()]
    centre = median(says)
    return IndexPrint(
        card_class=card_class,
        date=day,
        log_ratio=round(centre, 6),
        seller_count=len(says),
        offer_count=sum(map(len, by_seller.values())),
        log_mad=round(median(abs(x - centre) for x in says), 6),
    )
