"""0G Compute: two offers, one for tokens that go in and one for those that come out, as the parameters of an inference service.

Format: struct `ServiceParams` of 0g-serving-contract, 2026-02. Prices there are whole atoms of the chain's own coin for a token: ours are rounded
up, and the offers, which are finer, are carried in `additionalInfo`.
"""

from __future__ import annotations

from typing import Any

import rfc8785

from harness.errors import ForgeryError, MisuseError
from harness.market.dialects.carry import KEY, agree, carried, taken, text
from harness.market.offers.abi import ZERO_ADDRESS
from harness.market.offers.envelope import Envelope
from harness.market.offers.offer import held_atomic
from harness.strangers import loads

__all__ = ["from_0g", "to_0g"]

_INFO_BYTES_MOST = 4096  # the contract's MAX_ADDITIONAL_INFO_LENGTH


def to_0g(  # noqa: PLR0913 - what the contract is told
    tokens_in: Envelope, tokens_out: Envelope, *, url: str, model: str, verifiability: str = "", tee_signer: str = ""
) -> dict[str, Any]:
    """Return what `addOrUpdateService` is called with; amounts as decimal text.

    Args:
        tokens_in: the offer for a token of a prompt, in the chain's own coin.
        tokens_out: that for a token of an answer, by the same provider.
        url: where the service answers.
        model: its name.
        verifiability: `TeeML`, or nothing.
        tee_signer: the address of the enclave's key; none by default.

    Raises:
        MisuseError: the offers are not for such units, in the coin and on one chain, or both are too long for the contract.
    """
    first, second = tokens_in.offer, tokens_out.offer
    same = (first.provider, first.chain_id, first.pay_to) == (second.provider, second.chain_id, second.pay_to)
    coin = first.asset == second.asset == ZERO_ADDRESS
    if not (same and coin and (first.unit, second.unit) == ("token-in", "token-out")):
        message = (
            "0G takes one offer for token-in and one for token-out, by one provider, in the chain's coin (asset zero)"
        )
        raise MisuseError(message)
    info = rfc8785.dumps({KEY: [carried(tokens_in), carried(tokens_out)]}).decode()
    if len(info.encode()) > _INFO_BYTES_MOST:
        message = f"the two offers are {len(info.encode())} bytes; the contract takes {_INFO_BYTES_MOST}"
        raise MisuseError(message)
    return {
        "serviceType": "chatbot",
        "url": url,
        "model": model,
        "verifiability": verifiability,
        "inputPrice": str(held_atomic(first, 1)),
        "outputPrice": str(held_atomic(second, 1)),
        "additionalInfo": info,
        "teeSignerAddress": tee_signer or ZERO_ADDRESS,
    }


def from_0g(params: Any) -> tuple[Envelope, Envelope]:
    """Return the offers that such parameters were made from; every field must follow from them.

    Raises:
        ForgeryError: one does not.
    """
    try:
        info = loads(text(params, "additionalInfo"))
    except (ValueError, RecursionError) as err:
        what = f"not JSON: {err}"
        raise ForgeryError(what, "$.additionalInfo") from err
    both = taken(info, KEY, 0), taken(info, KEY, 1)
    try:
        made = to_0g(
            *both,
            url=text(params, "url"),
            model=text(params, "model"),
            verifiability=text(params, "verifiability"),
            tee_signer=text(params, "teeSignerAddress"),
        )
    except MisuseError as err:
        raise ForgeryError(str(err)) from err
    agree(made, params)
    return both
