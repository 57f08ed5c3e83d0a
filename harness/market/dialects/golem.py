"""Golem: an offer as the properties of a provider's offer, priced per second by the linear model.

Format: golem-architecture, standards `golem.com.pricing.model.linear` and GAP-35 for GPUs. Prices there are JSON numbers in GLM; ours are written
digit by digit from whole numbers, and read back without a float.
"""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from typing import Any

from harness.errors import ForgeryError, MisuseError
from harness.market.dialects.carry import KEY, agree, at, carried, listed, taken
from harness.market.offers.envelope import Envelope
from harness.market.offers.offer import Offer, price_fraction
from harness.scoring.exact import plain
from harness.strangers import loads

__all__ = ["from_golem", "golem_text", "parse_golem", "to_golem"]

_PLATFORMS = {  # of payment: chain and GLM's contract there
    (1, "0x7dd9c5cba05e151c895fde1cf355c9a1d5da6429"): "erc20-mainnet-glm",
    (137, "0x0b220b82f3ea3b7f6d9a1d8ab58930c064a2b5bf"): "erc20-polygon-glm",
}
_COEFFICIENTS = "golem.com.pricing.model.linear.coeffs"
_GPU = "golem.!exp.gap-35.v1.inf.gpu"
_GIB = 2**30


def to_golem(envelope: Envelope, *, model: str, memory_bytes: int | None = None) -> dict[str, Any]:
    """Return the flat properties of an offer in GLM by the second; prices are decimals.

    Args:
        envelope: the signed offer, which is carried whole.
        model: of the GPU, as `NVIDIA H100 80GB HBM3`.
        memory_bytes: of the GPU; whole GiB are stated.

    Raises:
        MisuseError: the offer is not in GLM on a chain that Golem pays on, or not by the second.
    """
    offer = envelope.offer
    platform = _PLATFORMS.get((offer.chain_id, offer.asset))
    if platform is None or offer.unit != "gpu-second":
        message = f"{offer.unit} in {offer.asset} on chain {offer.chain_id}: Golem is paid in GLM on chain 1 or 137, by the gpu-second"
        raise MisuseError(message)
    found: dict[str, Any] = {
        "golem.com.pricing.model": "linear",
        _COEFFICIENTS: [_glm_per_s(offer), Decimal(0)],
        "golem.com.usage.vector": ["golem.usage.duration_sec"],
        "golem.com.scheme": "payu",
        f"golem.com.payment.platform.{platform}.address": offer.pay_to,
        f"{_GPU}.model": model,
        KEY: carried(envelope),
    }
    if memory_bytes is not None:
        found[f"{_GPU}.memory.total.gib"] = memory_bytes // _GIB
    return found


def _glm_per_s(offer: Offer) -> Decimal:
    """Return the exact price of a second as a decimal: its denominator is a power of ten."""
    price: Fraction = price_fraction(offer)
    digits = offer.price_scale + offer.asset_decimals
    return Decimal((0, tuple(map(int, str(int(price * 10**digits)))), -digits))


def golem_text(properties: dict[str, Any]) -> str:
    """Return properties as JSON; decimals become numbers with all their digits."""
    return _json(properties)


def _json(value: Any) -> str:
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{_json(v)}" for name, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json, value)) + "]"
    return json.dumps(value)


def parse_golem(text: str) -> dict[str, Any]:
    """Return the properties of such JSON, its prices as decimals.

    Raises:
        ForgeryError: it is not JSON.
    """
    try:
        found: dict[str, Any] = loads(text, parse_float=Decimal)
    except (ValueError, RecursionError) as err:
        what = f"not JSON: {err}"
        raise ForgeryError(what) from err
    return found


def from_golem(properties: Any) -> Envelope:
    """Return the offer that properties were made from; every one must follow from it, the price to the last digit.

    Raises:
        ForgeryError: one does not.
    """
    envelope = taken(properties, KEY)
    gib = properties.get(f"{_GPU}.memory.total.gib")
    size = gib * _GIB if isinstance(gib, int) else None
    try:
        made = to_golem(envelope, model=at(properties, f"{_GPU}.model"), memory_bytes=size)
    except MisuseError as err:
        raise ForgeryError(str(err)) from err
    given = dict(properties)
    given[_COEFFICIENTS] = [Decimal(c) if isinstance(c, int) else c for c in listed(properties, _COEFFICIENTS)]
    agree(made, given)
    return envelope
