"""Other people's JavaScript says of our hashes, signatures, offers and receipts what we say of them: viem and the official SDK of x402."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import npmcache
import pytest
import rfc8785
from offers import SIGNER, offered, signed

from harness.market.dialects import erc8294, x402
from harness.market.offers.abi import ZERO_ADDRESS, calldata, checksummed
from harness.market.offers.eip712 import digest, struct_hash, typed_data
from harness.market.offers.keccak import plain
from harness.market.offers.offer import FIELDS, _values, digest_of, typed_data_of

SCRIPT = Path(__file__).parent / "signed.js"
KEY = "0x" + "11" * 32
PAYER = "0x" + "66" * 20
TOKEN: dict[str, Any] = {"token_name": "USD Coin", "token_version": "2"}


def asked(*tasks: dict[str, Any]) -> list[Any]:
    """Ask node all at once, for it takes a second to start."""
    environment = os.environ | {"NODE_PATH": str(npmcache.modules())}
    text = json.dumps(tasks)
    done = subprocess.run(
        ["node", SCRIPT], input=text, capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said: list[Any] = json.loads(done.stdout)
    return said


def typed(data: dict[str, Any], signature: str) -> dict[str, Any]:
    return {"task": "typed", "data": data, "signature": signature, "key": KEY, "signer": SIGNER.address}


@pytest.mark.slow
def test_viem_and_the_sdk_of_x402_agree_with_us_bit_for_bit() -> None:
    offers = [
        offered(),
        offered(escrow=ZERO_ADDRESS, nonce=2**256 - 1, agent_id=2**64, asset_decimals=18),
        offered(unit="mcycle", chain_id=2**53 - 1),
    ]
    tasks = [typed(typed_data_of(one), SIGNER.sign(digest_of(one))) for one in offers]
    attestation = erc8294.Attestation(
        request_hash="0x" + "ab" * 32,
        agent_id=2**70,
        validator=SIGNER.address,
        verdict=100,
        evidence_hash="0x" + "cd" * 32,
        issued_at=1_795_521_960,
    )
    vni = erc8294.domain(8453, "0x" + "99" * 20)
    verdict = erc8294.attest(attestation, SIGNER, chain_id=8453, network="0x" + "99" * 20)
    tasks.append(typed(typed_data(vni, "Attestation", erc8294._FIELDS, attestation.values()), verdict.signature))
    *by_viem, attested = asked(*tasks)
    for one, said, task in zip(offers, by_viem, tasks, strict=False):
        assert said["digest"] == "0x" + digest_of(one).hex()
        assert said["struct"] == "0x" + struct_hash("ComputeQuote", FIELDS, _values(one)).hex()
        assert said["signature"] == task["signature"]
        assert said["recovered"] == checksummed(SIGNER.address)
        assert said["verified"] is True
    assert attested["digest"] == "0x" + digest(vni, "Attestation", erc8294._FIELDS, attestation.values()).hex()
    assert (attested["signature"], attested["verified"]) == (verdict.signature, True)


def test_the_sdk_of_x402_accepts_our_offers_and_receipts_and_no_changed_ones() -> None:
    own = signed()
    url = f"https://gpu.example/v1/quotes/{own.offer.quote_id}/accept"
    required = x402.to_x402(own, SIGNER, resource_url=url, **TOKEN)
    # The SDK asks the clock whether a receipt is recent.
    receipt = x402.sign_receipt(own.offer, SIGNER, resource_url=url, payer=PAYER, issued_at_s=int(time.time()))
    about = {"task": "x402", "payer": PAYER, "strangers": ["0x" + "67" * 20]}
    changed = json.loads(json.dumps(required))
    changed["extensions"]["offer-receipt"]["info"]["offers"][0]["payload"]["amount"] = "1"
    elsewhere = receipt | {"payload": receipt["payload"] | {"resourceUrl": url.replace("gpu", "other")}}
    good, bad = asked(
        about | {"required": required, "receipt": receipt}, about | {"required": changed, "receipt": elsewhere}
    )
    payload = required["extensions"]["offer-receipt"]["info"]["offers"][0]["payload"]
    assert good["offerSigner"] == good["receiptSigner"] == checksummed(SIGNER.address)
    assert good["offerDigest"] == "0x" + digest(x402._OFFERS, "Offer", x402._OFFER, payload).hex()
    assert good["receiptDigest"] == "0x" + digest(x402._RECEIPTS, "Receipt", x402._RECEIPT, receipt["payload"]).hex()
    assert (good["accepts"], good["matches"], good["strangersReceipt"]) == (True, True, False)
    assert good["canonical"] == rfc8785.dumps(required).decode()
    assert bad["offerSigner"] != checksummed(SIGNER.address) != bad["receiptSigner"]
    assert (bad["accepts"], bad["matches"]) == (False, False)


def test_viem_encodes_calls_and_hashes_as_we_do() -> None:
    answer = ("0x" + "0f" * 32, 100, "https://gpu.example/e\u00e9", "0x" + "ab" * 32, "gpu-bench:v1")
    kinds = "(bytes32,uint8,string,bytes32,string)"
    named = "validationResponse(bytes32 a,uint8 b,string c,bytes32 d,string e)"
    by_viem, hashed = asked(
        {"task": "calldata", "signature": named, "args": [answer[0], 100, *answer[2:]]},
        {"task": "keccak", "text": "gpu-bench-v1"},
    )
    assert by_viem == calldata(f"validationResponse{kinds}", *answer)
    assert hashed == erc8294.BENCHMARK == "0x" + plain(b"gpu-bench-v1").hex()
