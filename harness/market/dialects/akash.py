"""Akash: the bid of a provider for an order, from the quotes of his devices. Akash executes a program, gives it the order and reads one number.

Format: the bid price script of akash-network/provider: JSON on standard input, one decimal on standard output, the price of a block in the
order's denomination. No number, or an exit code, means no bid. All sums are exact; the price of a block is rounded up once, at the precision asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from harness.errors import MisuseError
from harness.model import Quote
from harness.strangers import loads

__all__ = ["Gpu", "Rates", "bid", "gpu_of"]

_USD = (  # Axelar's USDC on the main and the test network, in millionths
    "ibc/170C677610AC31DF0904FFE09CD3B5C657492170E7E52372E48756B71E56F2F1",
    "ibc/12C6A0C374171B595A0A9E18B83FA09D295FB1F2D8C6DAA3AC28683471752D84",
    "uact",  # Akash's credit, worth a dollar by design
)
_MICRO = 10**6
_S_PER_HOUR = 3600
_GIB = 2**30
_MILLI = 1000
_PRECISION, _PRECISION_MOST = 6, 18
_HOURS_PER_MONTH = Fraction(730488, 1000)  # 30.437 days, as the provider's own script counts


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card as Akash names one: `h100`, and where they are known `80Gi` and `pcie` or `sxm`."""

    model: str
    ram: str | None = None
    interface: str | None = None

    def serves(self, wanted: Gpu) -> bool:
        """Tell whether it is what an order wants; what either does not say, fits."""
        ram = self.ram is None or wanted.ram in (None, self.ram)
        interface = self.interface is None or wanted.interface is None or wanted.interface.startswith(self.interface)
        return self.model == wanted.model and ram and interface


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What is asked beside the GPUs, in dollars a month, and what the chain's own token is worth."""

    usd_per_akt: Decimal | None = None  # without it there is no bid in uakt
    block_s: Decimal = Decimal("6.117")
    cpu_usd: Decimal = Decimal(0)  # a thread; 0 where the price of the GPU covers its host
    memory_usd: Decimal = Decimal(0)  # a GiB
    storage_usd: Decimal = Decimal(0)  # a GiB
    endpoint_usd: Decimal = Decimal(0)
    ip_usd: Decimal = Decimal(0)


def gpu_of(device_name: str) -> Gpu:
    """Return the card of a device's name, as `NVIDIA H100 80GB HBM3` or `NVIDIA GeForce RTX 4090`."""
    memory = re.search(r"(\d+) ?GB\b", device_name)
    interface = re.search(r"\b(pcie|sxm)", device_name.lower())
    rest = re.sub(r"\d+ ?GB\b|\bHBM\w*|\b(NVIDIA|GeForce|Tesla|Quadro|PCIe?|SXM\w*|Generation)\b|-", " ", device_name)
    model = "".join(word.lower() for word in rest.split())
    return Gpu(model, f"{memory[1]}Gi" if memory else None, interface[1] if interface else None)


def bid(order_text: str, quotes: Sequence[Quote], rates: Rates, *, now_s: int, max_age_s: int = 86_400) -> str:
    """Return the price of a block for an order, as text.

    Args:
        order_text: JSON, as the provider gives it.
        quotes: of the devices that are for sale; of several that fit an order the dearest counts.
        rates: what else costs something.
        now_s: seconds since 1970.
        max_age_s: how old the benchmark behind a quote may be.

    Raises:
        MisuseError: the order is malformed, a GPU has no fresh price, the denomination is unknown, or the order pays too little: no bid.
    """
    order = _json(order_text)
    price = order.get("price") if isinstance(order, dict) else None
    resources = order.get("resources") if isinstance(order, dict) else order
    precision = order.get("price_precision", _PRECISION) if isinstance(order, dict) else 0
    if not isinstance(resources, list) or not (isinstance(precision, int) and 0 <= precision <= _PRECISION_MOST):
        message = f"the order's resources should be a list, its precision 0 to {_PRECISION_MOST}"
        raise MisuseError(message)
    denomination = price.get("denom") if isinstance(price, dict) else "uakt"
    usd_per_hour = _usd_per_hour(resources, _fresh(quotes, now_s, max_age_s), rates)
    per_block = usd_per_hour * Fraction(rates.block_s) / _S_PER_HOUR * _atoms_per_usd(denomination, rates)
    asked = -(-per_block.numerator * 10**precision // per_block.denominator)  # up
    if asked <= 0:
        message = "nothing in the order has a price"
        raise MisuseError(message)
    limit = _number(price.get("amount")) if isinstance(price, dict) and price.get("amount") is not None else None
    text = _decimal(asked, precision)
    if limit is not None and Fraction(asked, 10**precision) > limit:
        message = f"the order pays {price['amount']}; the price is {text} {denomination} a block"  # type: ignore[index]
        raise MisuseError(message)
    return text


def _json(text: str) -> Any:
    try:
        return loads(text, parse_float=Decimal)
    except (ValueError, RecursionError) as err:
        message = f"the order is not JSON: {err}"
        raise MisuseError(message) from err


def _fresh(quotes: Sequence[Quote], now_s: int, max_age_s: int) -> list[tuple[Gpu, Decimal]]:
    """Return the cards that have a price for a GPU market from a benchmark that is not too old."""
    from harness.market.offers.evidence import epoch_s

    return [
        (gpu_of(q.device_name), q.price_usd_per_hour)
        for q in quotes
        if q.for_gpu_market and q.price_usd_per_hour is not None and 0 <= now_s - epoch_s(q.issued_at) <= max_age_s
    ]


def _usd_per_hour(resources: Sequence[Any], cards: Sequence[tuple[Gpu, Decimal]], rates: Rates) -> Fraction:
    total = Fraction(0)
    for at, resource in enumerate(resources):
        where = f"resources[{at}]"
        if not isinstance(resource, dict):
            message = f"{where} is not an object"
            raise MisuseError(message)
        gpus = _gpus(resource, cards, where)
        beside = (
            _number(resource.get("cpu", 0)) / _MILLI * Fraction(rates.cpu_usd)
            + _number(resource.get("memory", 0)) / _GIB * Fraction(rates.memory_usd)
            + _storage(resource) / _GIB * Fraction(rates.storage_usd)
            + _number(resource.get("endpoint_quantity") or 0) * Fraction(rates.endpoint_usd)
            + _number(resource.get("ip_lease_quantity") or 0) * Fraction(rates.ip_usd)
        ) / _HOURS_PER_MONTH
        total += _number(resource.get("count", 1)) * (gpus + beside)
    return total


def _storage(resource: dict[str, Any]) -> Fraction:
    volumes = resource.get("storage") or []
    if not isinstance(volumes, list) or not all(isinstance(v, dict) for v in volumes):
        message = "storage should be a list of volumes"
        raise MisuseError(message)
    return sum((_number(v.get("size", 0)) for v in volumes), Fraction(0))


def _gpus(resource: dict[str, Any], cards: Sequence[tuple[Gpu, Decimal]], where: str) -> Fraction:
    gpu = resource.get("gpu") or {}
    if not isinstance(gpu, dict):
        message = f"{where}.gpu is not an object"
        raise MisuseError(message)
    units = _number(gpu.get("units") or 0)
    if not units:
        return Fraction(0)
    wanted = list(_wanted(gpu))
    prices = [usd for card, usd in cards if any(card.serves(one) for one in wanted)]
    if not prices:
        names = ", ".join(one.model for one in wanted) or "a card of no name"
        message = f"no fresh quote for {names}; there are {', '.join(card.model for card, _ in cards) or 'none'}"
        raise MisuseError(message)
    return units * Fraction(max(prices))


def _wanted(gpu: dict[str, Any]) -> Iterator[Gpu]:
    """Yield the cards that an order would take: its models are one object, or a list of them."""
    attributes = gpu.get("attributes")
    vendors = attributes.get("vendor") if isinstance(attributes, dict) else None
    models = vendors.get("nvidia") if isinstance(vendors, dict) else None
    for one in models if isinstance(models, list) else [models]:
        if isinstance(one, dict) and isinstance(one.get("model"), str):
            yield Gpu(one["model"].lower(), *(_property(one, name) for name in ("ram", "interface")))


def _property(model: dict[str, Any], name: str) -> str | None:
    found = model.get(name) or None
    if not isinstance(found, str | None):
        message = f"the order's {name} is {str(found)[:80]}; it should be text"
        raise MisuseError(message)
    return found


def _atoms_per_usd(denomination: Any, rates: Rates) -> Fraction:
    """Return how many millionths of the order's money a dollar is."""
    if denomination in _USD:
        return Fraction(_MICRO)
    if denomination == "uakt" and rates.usd_per_akt is not None and rates.usd_per_akt > 0:
        return _MICRO / Fraction(rates.usd_per_akt)
    reason = "give --usd-per-akt" if denomination == "uakt" else "known are uakt, uact and Axelar's USDC"
    message = f"no price in {str(denomination)[:80]!r}: {reason}"
    raise MisuseError(message)


def _number(value: Any) -> Fraction:
    """Return a number of the order: a whole one, a decimal, or either as text; never below 0."""
    try:
        found = Decimal(str(value)) if isinstance(value, int | Decimal | str) and not isinstance(value, bool) else None
    except ArithmeticError:
        found = None
    if found is None or not found.is_finite() or not 0 <= found < 10**30:
        message = f"{str(value)[:80]!r} is not an amount of anything"
        raise MisuseError(message)
    return Fraction(found)


def _decimal(count: int, precision: int) -> str:
    whole, part = divmod(count, 10**precision)
    return f"{whole}.{part:0{precision}d}" if precision else str(whole)
