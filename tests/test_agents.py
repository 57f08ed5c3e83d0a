# ruff: noqa: E402 - what is imported is asked for first
"""An agent at a market: the official MCP client in front of `harness mcp`, which asks a real `harness serve`; and markets that lie."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import pytest

for _needed in ("coincurve", "httpx", "mcp", "mpp"):
    pytest.importorskip(_needed, reason="the extras mcp, pay, serve and sign are not installed")
import anyio
import httpx
from mcp import Client, StdioServerParameters
from offers import SIGNER, offered, signed
from shopfront import header, required
from shopfront import signed as signed_payment

from harness import codec
from harness.errors import FailureError, ForgeryError, MisuseError
from harness.market.offers import envelope as envelopes
from harness.market.offers import secp256k1
from harness.market.sales.page import CSP
from harness.market.tools.agents import verify_quote
from harness.market.tools.stall import Stall
from harness.scoring.evidence import load, quote

ROOT = Path(__file__).parent.parent
SKILL = (ROOT / "SKILL.md").read_text()
TOOLS = ["list_devices", "get_benchmark", "quote_gpu", "verify_quote", "open_dispute"]
(REPORT,) = (ROOT / "results").glob("2*.json")


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the shipped report's CPU, by a facilitator that moves nothing."""
    folder = tmp_path_factory.mktemp("market")
    secp256k1.keygen(folder / "key")
    command = [
        sys.executable,
        "-m",
        "harness",
        "serve",
        str(ROOT / "results"),
        "--key",
        "key",
        "--facilitator",
        "trial",
    ]
    command += ["--port", "0", "--cpus", "--evidence-hours", "1000000"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().removeprefix("listening at ").strip()
        process.terminate()


def bought(accept: str) -> dict[str, Any]:
    """Pay what a market asks, as an x402 client does; return the sale."""
    with httpx.Client(trust_env=False, timeout=30) as http:
        due = required(http.get(accept))
        answer = http.get(accept, headers=header(signed_payment(due)))
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


def talk(url: str) -> dict[str, Any]:
    """Use each tool once through a subprocess; return what came, by what was asked."""

    async def all_of_it() -> dict[str, Any]:
        asked = StdioServerParameters(command=sys.executable, args=["-m", "harness", "mcp", url], cwd=ROOT)
        async with Client(asked) as client:
            found: dict[str, Any] = {"tools": await client.list_tools(), "again": await client.list_tools()}

            async def call(name: str, tool: str, **arguments: Any) -> Any:
                found[name] = await client.call_tool(tool, arguments)
                return found[name].structured_content

            device = (await call("devices", "list_devices"))["devices"][0]["device"]
            await call("benchmark", "get_benchmark", device=device)
            envelope = (await call("quote", "quote_gpu", device=device, seconds=90))["envelope"]
            await call("verified", "verify_quote", envelope=envelope)
            changed = envelope | {"quote": envelope["quote"] | {"unitPriceAtomic": "1"}}
            await call("tampered", "verify_quote", envelope=changed)
            await call("no device", "get_benchmark", device="GPU-nosuch")
            await call("no seconds", "quote_gpu", device=device, seconds=0)
            quote_id = envelope["quote"]["quoteId"]
            await call("unpaid", "open_dispute", quote_id=quote_id, capture_id="0x0", from_s=1, until_s=2)
            sale = bought(f"{url}/v1/quotes/{quote_id}/accept")
            now = int(time.time())
            await anyio.sleep(1.1)  # a claim is for some of the lease so far, in whole seconds
            claim = {"quote_id": quote_id, "capture_id": sale["transaction"], "from_s": now, "until_s": now + 1}
            due = await call("bond", "open_dispute", **claim)
            payment = header(signed_payment(due["payment_required"]))["PAYMENT-SIGNATURE"]
            await call("disputed", "open_dispute", **claim, payment=payment)
            return found

    return anyio.run(all_of_it)


@pytest.mark.slow
def test_an_agent_looks_checks_asks_and_verifies_through_the_official_client(market: str) -> None:
    found = talk(market)
    tools = found["tools"].tools
    assert [tool.name for tool in tools] == TOOLS
    assert found["again"].tools == tools
    for tool in tools:
        assert tool.output_schema["type"] == "object", tool.name
        assert tool.description, tool.name
    report = load(REPORT)
    (priced,) = quote(REPORT)
    benchmark = found["benchmark"].structured_content
    assert (benchmark["report_sha256"], benchmark["usd_per_hour"]) == (
        report.seal.digest,
        str(priced.price_usd_per_hour),
    )
    assert benchmark["price_recomputed"] is True
    assert {rate["work_class"] for rate in benchmark["rates"]} >= {"gemm_fp32", "mem"}
    offered = found["quote"].structured_content
    assert offered["checked"]["units_most"] == "90"
    assert offered["accept_url"] == f"{market}/v1/quotes/{offered['checked']['quote_id']}/accept"
    assert found["verified"].structured_content["valid"] is True
    assert found["verified"].structured_content["provider"] == found["devices"].structured_content["provider"]
    tampered = found["tampered"].structured_content
    assert (tampered["valid"], tampered["fault"][:7]) == (False, "$.quote")
    for name, says in (
        ("no device", "sells no device"),
        ("no seconds", "greater than or equal to 1"),
        ("unpaid", "refused"),
    ):
        assert found[name].is_error, name
        assert says in found[name].content[0].text, name


def test_the_root_of_a_market_is_the_page_and_each_of_its_links_leads_somewhere(market: str) -> None:
    with httpx.Client(base_url=market, trust_env=False) as http:
        answer = http.get("/")
        text, headers = answer.text, answer.headers
        links = re.findall(r'href="(/[^"]+)"', text)
        assert {link: http.get(link).status_code for link in links} == dict.fromkeys(links, 200)
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert {name: headers[name] for name in ("Content-Security-Policy", "X-Content-Type-Options")} == {
        "Content-Security-Policy": CSP,
        "X-Content-Type-Options": "nosniff",
    }
    assert f"/v1/evidence/{load(REPORT).seal.digest}" in links


def test_each_path_and_each_tool_of_the_skill_is_there(market: str) -> None:
    document = httpx.get(f"{market}/openapi.json", trust_env=False).json()
    known = {re.sub(r"{\w+}", "{}", path): methods for path, methods in document["paths"].items()}
    named = re.findall(r"(GET|POST) (/v1/[\w/{}]+)", SKILL)
    assert len(named) >= 7
    for method, path in named:
        assert method.lower() in known[re.sub(r"{\w+}", "{}", path)], path
    assert re.findall(r"^\| `(\w+)` \|", SKILL, re.MULTILINE) == TOOLS
    claim = SKILL[SKILL.index("`POST /v1/disputes`") :].split(": 402")[0]
    wanted = set(document["components"]["schemas"]["DisputeRequest"]["properties"])
    assert wanted == set(re.findall(r"`(\w+)`", claim)) - {"cycles_per_s"}


# --- offline ----------------------------------------------------------------------------------------------------------


def test_an_offer_is_good_bad_or_late_and_each_says_why() -> None:
    offer, plain = offered(), envelopes.plain(signed())
    good = verify_quote(plain, now_s=offer.valid_after)
    assert (good.valid, good.fault, good.provider, good.seconds_left) == (True, None, SIGNER.address, offer.valid_until - offer.valid_after)  # fmt: skip
    late = verify_quote(plain, now_s=offer.valid_until)
    assert not late.valid
    assert late.quote_id == offer.quote_id
    assert "was good until" in str(late.fault)
    unsigned = verify_quote(envelopes.plain(envelopes.Envelope(offer=offer)), now_s=offer.valid_after)
    assert "did not sign" in str(unsigned.fault)
    assert unsigned.provider is None


# --- markets that lie, or are none ------------------------------------------------------------------------------------

Answers = Mapping[str, tuple[int, Mapping[str, str], bytes]]


@contextmanager
def liar(answers: Answers) -> Iterator[Stall]:
    """Be a market that says what a test wants said, by path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, body = answers[self.path]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the standard library names it

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Stall(f"http://127.0.0.1:{server.server_port}/")
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def raw(*pieces: bytes, pause_s: float = 0.0, sent: list[bytes] | None = None) -> Iterator[Stall]:
    """Be whatever it is that answers with these bytes, piece by piece."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1 << 16)
            with contextlib.suppress(OSError):
                for piece in pieces:
                    self.request.sendall(piece)
                    (sent if sent is not None else []).append(piece)
                    time.sleep(pause_s)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Stall(f"http://127.0.0.1:{server.server_address[1]}")
        finally:
            server.shutdown()
            thread.join()


def said(document: object, status: int = 200) -> tuple[int, Mapping[str, str], bytes]:
    return status, {}, json.dumps(document).encode()


def test_a_report_or_a_price_that_is_another_is_refused() -> None:
    report, (priced,) = load(REPORT), quote(REPORT)
    listed = {"device": priced.device_uuid, "report": report.seal.digest, "quote": codec.digest(priced)}
    whole = REPORT.read_bytes()
    honest: dict[str, tuple[int, Mapping[str, str], bytes]] = {
        "/v1/devices": said({"devices": [listed]}),
        f"/v1/evidence/{listed['report']}": (200, {}, whole),
        f"/v1/evidence/{listed['quote']}": (200, {}, codec.encode(priced)),
    }
    with liar(honest) as stall:
        assert stall.get_benchmark(priced.device_uuid).price_recomputed
    at = whole.index(b'"time_s":') + 9  # one digit of one time: the digest in the seal no longer fits
    digit = b"9" if whole[at : at + 1] != b"9" else b"8"
    changed = honest | {f"/v1/evidence/{listed['report']}": (200, {}, whole[:at] + digit + whole[at + 1 :])}
    with liar(changed) as stall, pytest.raises(ForgeryError):
        stall.get_benchmark(priced.device_uuid)
    cheaper = codec.encode(priced).replace(b'"price_usd_per_hour":"0.044402"', b'"price_usd_per_hour":"0.044401"')
    assert cheaper != codec.encode(priced)
    with liar(honest | {f"/v1/evidence/{listed['quote']}": (200, {}, cheaper)}) as stall, pytest.raises(ForgeryError):
        stall.get_benchmark(priced.device_uuid)
    renamed = listed | {"quote": "a" * 64}
    known = honest | {"/v1/devices": said({"devices": [renamed]}), f"/v1/evidence/{'a' * 64}": (200, {}, cheaper)}
    with liar(known) as stall, pytest.raises(ForgeryError, match="not what its name says"):
        stall.get_benchmark(priced.device_uuid)


def test_an_offer_for_other_seconds_or_by_a_stranger_is_refused() -> None:
    stale = said({"envelope": envelopes.plain(signed())})
    with liar({"/v1/quotes": stale}) as stall, pytest.raises(ForgeryError, match="does not check"):
        stall.quote_gpu(None, 60)
    fresh = signed(now_s=int(time.time()), evidence_max_age_s=10**9)
    bad = said({"envelope": envelopes.plain(fresh)}, 201)
    with liar({"/v1/quotes": bad}) as stall, pytest.raises(ForgeryError, match="7 gpu-seconds were asked for"):
        stall.quote_gpu(None, 7)


def test_a_bond_that_is_due_is_told_as_x402_has_it() -> None:
    wanted = {"x402Version": 2, "accepts": [{"amount": "75"}]}
    due = 402, {"PAYMENT-REQUIRED": base64.b64encode(json.dumps(wanted).encode()).decode()}, b"{}"
    claim: dict[str, Any] = {"quote_id": "0x" + "ab" * 32, "capture_id": "0x1", "from_s": 1, "until_s": 2}
    with liar({"/v1/disputes": due}) as stall:
        found = stall.open_dispute(**claim)
    assert (found.state, found.payment_required) == ("payment_required", wanted)
    filed = said({"state": "DISPUTED", "dispute_id": "0x" + "cd" * 32, "seed": "5", "verdict": None}, 201)
    with liar({"/v1/disputes": filed}) as stall:
        assert stall.open_dispute(**claim, payment="x").dispute_id == "0x" + "cd" * 32


def test_a_market_that_misbehaves_is_told_apart_from_a_bug() -> None:
    answers: Answers = {
        "/v1/devices": (302, {"Location": "http://169.254.169.254/"}, b""),
        "/v1/quotes": said({"code": "device_taken", "detail": "the device is let"}, 409),
        "/v1/disputes": (402, {}, b"{}"),
    }
    with liar(answers) as stall:
        with pytest.raises(FailureError, match="status 302"):
            stall.list_devices()
        with pytest.raises(FailureError, match="refused: device_taken: the device is let"):
            stall.quote_gpu(None, 60)
        with pytest.raises(FailureError, match="does not say how"):
            stall.open_dispute("0x" + "ab" * 32, "0x1", from_s=1, until_s=2)
    for body in (b"[]", b"{", b'{"devices":[{}]}', b"[" * 100_000):
        with liar({"/v1/devices": (200, {}, body)}) as stall, pytest.raises(FailureError):
            stall.list_devices()
    long = json.dumps({"devices": []}).encode() + b" " * (1 << 20)
    with liar({"/v1/devices": (200, {}, long)}) as stall, pytest.raises(FailureError, match="with more than"):
        stall.list_devices()
    with pytest.raises(FailureError, match="does not answer"):
        Stall("http://127.0.0.1:9").list_devices()


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"HELLO\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}",
        HEAD + b"A: " + b"x" * 70_000 + b"\r\n\r\n",
        HEAD + b'Content-Length: 17\r\n\r\n{"devices":["x"]}',
        HEAD + b'Content-Length: 13\r\n\r\n{"devices":1}',
    ],
    ids=["status", "chunk", "header", "devices of text", "no list"],
)
def test_what_is_no_answer_of_a_market_is_a_failure_of_the_market(answer: bytes) -> None:
    with raw(answer) as stall:
        with pytest.raises(FailureError):
            stall.list_devices()
        with pytest.raises(FailureError):
            stall.get_benchmark("x")


@pytest.mark.parametrize("head", [HEAD, HEAD + b"Content-Length: 99999\r\n\r\n"], ids=["header", "body"])
def test_a_market_that_drips_is_given_up_at_one_deadline(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    """Forty bytes, each in time if each had a time-out of its own."""
    monkeypatch.setattr("harness.market.tools.stall._OF_ANSWERS", (0.2, 1 << 20))
    sent: list[bytes] = []
    with raw(head, *[b"x"] * 40, pause_s=0.05, sent=sent) as stall:
        with pytest.raises(FailureError, match="does not answer"):
            stall.list_devices()
        assert len(sent) < 40


def test_a_report_that_does_not_have_the_device_is_refused() -> None:
    report, (priced,) = load(REPORT), quote(REPORT)
    other = replace(priced, device_uuid="GPU-h100")
    listed = {"device": "GPU-h100", "report": report.seal.digest, "quote": codec.digest(other)}
    known = {
        "/v1/devices": said({"devices": [listed]}),
        f"/v1/evidence/{listed['report']}": (200, {}, REPORT.read_bytes()),
        f"/v1/evidence/{listed['quote']}": (200, {}, codec.encode(other)),
    }
    with liar(known) as stall, pytest.raises(ForgeryError, match="nothing of the device"):
        stall.get_benchmark("GPU-h100")


@pytest.mark.parametrize(
    "url",
    ["http://[", "http://127.0.0.1:abc", "file:///etc/passwd", "gpus.example", "http://", "https://gpus.example/?a=1"],
)
def test_what_is_no_address_of_a_market_is_refused(url: str) -> None:
    with pytest.raises(MisuseError, match="not a market's URL"):
        Stall(url)
