"""Quotes of a fleet by all cores of a Ray cluster: where who shares work out meets what prices it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from harness.model import Quote
from harness.scoring import piecework
from harness.scoring.costs import Costs
from harness.scoring.evidence import Source
from harness.scoring.piecework import Sent
from harness.scoring.profiles import Profile
from harness.scoring.terms import Basis, Deal

__all__ = ["quote_on_ray", "quotes_through"]


def quote_on_ray(  # noqa: D417 - the rest is described by `quote`
    *reports: Sent,
    ray: str,
    costs: Costs | None = None,
    profile: str | Profile = "general",
    basis: Basis = "market",
    deal: Deal | None = None,
    history: Sequence[Source] = (),
) -> tuple[Quote, ...]:
    """Price each device of each report on all cores of a Ray cluster: the quotes of `harness.quote`, to the byte and in its order.

    Files are read here and travel as bytes: nodes need this package in the same version, and no file of ours. A cluster that is lost
    may take this very process along, which is why the command line does this in a child.

    Args:
        reports: files, folders of them, Parquet files, or bytes.
        ray: HOST:PORT of the cluster's head; or `local`, for one of this machine's cores that ends with the call.

    Raises:
        MisuseError: there is no such file, profile or cluster.
        ForgeryError: a file is not a report, or was changed.
        FailureError: the cluster lost a part of the work, or a node has other data or another version of this package.
    """
    from harness.cluster.fanout import connect

    order = piecework.order(costs=costs, profile=profile, basis=basis, deal=deal, history=history)
    with connect(ray, local_cpus=None) as cluster:
        return tuple(quotes_through(cluster, order, reports))


def quotes_through(cluster: Any, order: bytes, reports: Iterable[Sent]) -> Iterator[Quote]:
    """Yield the quotes of reports as they come, through a cluster that is connected."""
    from harness.cluster.sharing import shared

    for answer in shared(cluster, piecework.price_chunk, order, piecework.chunks(reports)):
        yield from piecework.quotes_in(answer)
