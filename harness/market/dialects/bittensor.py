"""Bittensor: a validator's weights from the quotes of each miner's devices, as the file that `btcli weights set --weights-file` reads.

A miner weighs what his devices were measured to do, in cycles a second, taken from quotes that are good for a GPU market; so anybody who holds the
quotes derives the same weights, and the file beside names them by a hash. The preview in 16 bits is the official normalisation, operation for
operation, floats included: weights are no money.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import rfc8785

from harness import codec
from harness.errors import MisuseError
from harness.market.offers.keccak import keccak256
from harness.model import Quote

__all__ = ["normalised", "to_weights"]

_U16_MAX = 65_535
_FILE_MOST = 2500  # entries that btcli reads


def to_weights(
    miners: Mapping[int, Sequence[Quote]], *, netuid: int, mechid: int = 0, block: int
) -> tuple[dict[str, int], dict[str, Any]]:
    """Return the weights file, and the file beside it that says what they follow from.

    Args:
        miners: the quotes of each miner's devices, by his UID; those that are not for a GPU market weigh nothing.
        netuid: of the subnet.
        mechid: of the mechanism.
        block: of the chain, at which this was computed.

    Raises:
        MisuseError: a UID is out of range, a device stands twice, the quotes were made with different data, or nothing weighs anything.
    """
    counted = {uid: [q for q in quotes if q.for_gpu_market and q.cycles_per_s] for uid, quotes in miners.items()}
    whole = [q for quotes in counted.values() for q in quotes]
    devices = [q.device_uuid for q in whole]
    data = {rfc8785.dumps(dict(q.digests)) for q in whole}
    if not all(0 <= uid <= _U16_MAX for uid in miners) or not len(whole) > 0 or len(miners) > _FILE_MOST:
        message = f"{len(miners)} miners with {len(whole)} quotes that count: UIDs are 0 to {_U16_MAX}, at most {_FILE_MOST}, and one quote must count"
        raise MisuseError(message)
    if len(set(devices)) < len(devices):
        twice = sorted({uuid for uuid in devices if devices.count(uuid) > 1})
        message = f"counted twice: {', '.join(twice)}"
        raise MisuseError(message)
    if len(data) > 1:
        message = "the quotes were made with different data or profiles, so their speeds are not comparable"
        raise MisuseError(message)
    weights = {str(uid): sum(q.cycles_per_s or 0 for q in quotes) for uid, quotes in sorted(counted.items()) if quotes}
    named: dict[str, Any] = {str(uid): sorted(map(codec.digest, quotes)) for uid, quotes in counted.items() if quotes}
    uids, values = normalised([int(uid) for uid in weights], list(weights.values()))
    return weights, {
        "schema": "harness.weights/1",
        "netuid": netuid,
        "mechid": mechid,
        "block": block,
        "versionKey": str(int.from_bytes(keccak256(data.pop())[:8], "big")),
        "evidenceRoot": "0x" + keccak256(rfc8785.dumps(named)).hex(),
        "quotes": named,
        "preview": {"uids": uids, "weights": values},
    }


def normalised(uids: Sequence[int], weights: Sequence[float]) -> tuple[list[int], list[int]]:
    """Return what the chain is sent: each weight against the largest, in 16 bits, zeros left out.

    Raises:
        MisuseError: a weight is negative or not finite.
    """
    if any(not 0 <= weight < float("inf") for weight in weights):
        message = "a weight should be finite, and 0 or more"
        raise MisuseError(message)
    top = max(weights, default=0)
    scaled = [(uid, round((weight / top) * _U16_MAX)) for uid, weight in zip(uids, weights, strict=True)] if top else []
    kept = [(uid, value) for uid, value in scaled if value]
    return [uid for uid, _ in kept], [value for _, value in kept]
