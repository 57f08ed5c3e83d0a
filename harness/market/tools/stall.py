"""A market as an agent meets it: asked over HTTP, and believed in nothing that can be checked here.

Promised: a benchmark that is handed on was verified, and its price recomputed; an offer checks, and is for so many seconds; nothing is paid and no
key is read. A market is another's machine: no redirect of it is followed, no more is read than such an answer may hold, nor for longer than 20 s (a report: 120 s), however it drips.
Not promised: that the market tells all it knows, that an offer is of the device that was named (its commitment is opened in a dispute), or delivery.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from email.message import Message
from typing import IO, Any, Literal

from harness.errors import FailureError, ForgeryError, HarnessError, MisuseError
from harness.market.offers.abi import checked
from harness.market.offers.urls import is_root
from harness.market.tools.agents import Benchmark, Dispute, ForSale, Offered, OnSale, Proven, verify_quote
from harness.strangers import loads

__all__ = ["Stall"]

_OF_ANSWERS = 20.0, 1 << 20  # seconds to connect, and then for the whole; bytes
_OF_DOCUMENTS = 120.0, 64 << 20  # a report
_PAYMENT_DUE = 402


class _Timed(io.RawIOBase):
    """What a connection says until its time-out is over, once for all of it and not anew for each piece."""

    def __init__(self, inner: io.RawIOBase, connection: socket.socket) -> None:
        self._inner, self._connection = inner, connection
        self._until_s = time.monotonic() + (connection.gettimeout() or 0.0)

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int | None:
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            message = "it takes too long"
            raise TimeoutError(message)
        self._connection.settimeout(left_s)
        return self._inner.readinto(into)

    def close(self) -> None:
        self._inner.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Timed(self.fp.detach(), sock))


class _Http(http.client.HTTPConnection):
    response_class = _Response


class _Https(http.client.HTTPSConnection):
    response_class = _Response


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Http, req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Https, req)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(  # noqa: PLR0913 - its signature is the standard library's
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        """Follow nothing: an answer is the market's own, or none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: int
    headers: Message
    body: bytes

    def json(self, url: str) -> dict[str, Any]:
        try:
            found = loads(self.body)
        except (ValueError, RecursionError) as err:
            message = f"{url} did not answer in JSON"
            raise FailureError(message) from err
        if not isinstance(found, dict):
            message = f"{url} answered with something else than an object"
            raise FailureError(message)
        return found


@dataclass(frozen=True, slots=True)
class Stall:
    """One market, by its URL.

    Raises:
        MisuseError: the URL is none of HTTP.
    """

    url: str
    _opener: urllib.request.OpenerDirector = field(
        default_factory=lambda: urllib.request.build_opener(_NoRedirects, _HttpHandler, _HttpsHandler), repr=False
    )

    def __post_init__(self) -> None:
        """Refuse what is no market's address."""
        if not is_root(self.url):
            message = f"{self.url!r} is not a market's URL, such as https://gpus.example"
            raise MisuseError(message)

    def list_devices(self) -> ForSale:
        """Return what the market says it sells.

        Raises:
            FailureError: it cannot be reached, or answers in no known form.
        """
        found = self._devices()
        names = ("provider", "network", "asset", "seconds_least", "seconds_most")
        try:
            devices = tuple(_on_sale(one) for one in found["devices"])
            return ForSale(market=self.url, **{name: found[name] for name in names}, devices=devices)
        except KeyError as err:
            message = f"{self.url}/v1/devices answered without {err}"
            raise FailureError(message) from err

    def get_benchmark(self, device: str) -> Benchmark:
        """Fetch a device's report and price, verify the one, and compute the other again.

        Raises:
            FailureError: the market cannot be reached.
            MisuseError: it sells no such device.
            ForgeryError: the report is not what its name says, or does not verify.
        """
        from harness import codec
        from harness.model import Quote
        from harness.scoring.evidence import load
        from harness.scoring.recompute import recompute

        one = next((one for one in self._devices()["devices"] if one.get("device") == device), None)
        if one is None:
            message = f"{self.url} sells no device {device!r}: see list_devices"
            raise MisuseError(message)
        report = load(self._document(one.get("report")))
        if report.seal.digest != one["report"]:
            what = f"the report is {report.seal.digest}, not {one['report']}"
            raise ForgeryError(what)
        quote = codec.decode(self._document(one.get("quote")), Quote)
        if codec.digest(quote) != one["quote"] or quote.device_uuid != device:
            what = "the price is of another device, or not what its name says"
            raise ForgeryError(what)
        verdict = recompute(quote, report)
        return Benchmark(
            device=device,
            name=quote.device_name,
            measured_at=report.sealed_at,
            report_sha256=report.seal.digest,
            signed_by=report.seal.public_key,
            emulated=report.emulated,
            rates=_rates(report, device),
            usd_per_hour=None if quote.price_usd_per_hour is None else str(quote.price_usd_per_hour),
            price_recomputed=verdict.accepted,
            price_faults=tuple(f"{fault.path}: {fault.what}" for fault in verdict.faults),
        )

    def quote_gpu(self, device: str | None, seconds: int) -> Offered:
        """Ask for a signed offer, and check it: its signature, its time, and that it is for so many seconds.

        Raises:
            FailureError: the market cannot be reached, or refuses.
            ForgeryError: the offer does not check, or is for something else.
        """
        found = self._post("/v1/quotes", {"device": device, "seconds": seconds}).json(self.url)
        envelope = found.get("envelope")
        checked_offer = verify_quote(envelope if isinstance(envelope, dict) else {})
        if not checked_offer.valid:
            what = f"the offer does not check: {checked_offer.fault}"
            raise ForgeryError(what)
        if (checked_offer.unit, checked_offer.units_most) != ("gpu-second", str(seconds)):
            what = f"{seconds} gpu-seconds were asked for; the offer is for {checked_offer.units_most} x {checked_offer.unit}"
            raise ForgeryError(what)
        accept = f"{self.url.rstrip('/')}/v1/quotes/{checked_offer.quote_id}/accept"
        return Offered(checked=checked_offer, accept_url=accept, envelope=dict(envelope or {}))

    def open_dispute(
        self, quote_id: str, capture_id: str, *, from_s: int, until_s: int, payment: str | None = None
    ) -> Dispute:
        """Claim that what was paid for was slower than promised.

        Args:
            quote_id: of the quote that was paid.
            capture_id: the transaction that paid it.
            from_s: seconds since 1970, when it was slow.
            until_s: and until when.
            payment: value of the header PAYMENT-SIGNATURE that pays the bond; the first call, without it, says how much that is.

        Raises:
            FailureError: the market cannot be reached, or refuses.
        """
        checked("bytes32", quote_id, "quote_id")
        claim = {
            "quote_id": quote_id,
            "capture_id": capture_id,
            "metric": "cycles_per_s",
            "from_s": from_s,
            "until_s": until_s,
        }
        answer = self._post("/v1/disputes", claim, {} if payment is None else {"PAYMENT-SIGNATURE": payment})
        if answer.status == _PAYMENT_DUE:
            return Dispute(state="payment_required", payment_required=_requirements(answer))
        found = answer.json(self.url)
        known = {name: found.get(name) for name in ("dispute_id", "seed", "deadline_s", "verdict")}
        return Dispute(state=str(found.get("state")), **known)

    def _devices(self) -> dict[str, Any]:
        found = self._get("/v1/devices")
        listed = found.get("devices")
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            message = f"{self.url}/v1/devices answered without a list of devices"
            raise FailureError(message)
        return found

    # --- by HTTP ----------------------------------------------------------------------------------------------------

    def _get(self, path: str) -> dict[str, Any]:
        return self._ask("GET", path).json(self.url + path)

    def _document(self, digest: object) -> bytes:
        if not isinstance(digest, str) or not digest.isalnum():
            message = f"{self.url} names a document {digest!r}, which is no digest"
            raise FailureError(message)
        return self._ask("GET", f"/v1/evidence/{digest}", limits=_OF_DOCUMENTS).body

    def _post(self, path: str, body: object, headers: Mapping[str, str] | None = None) -> _Answer:
        return self._ask(
            "POST", path, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def _ask(
        self,
        method: Literal["GET", "POST"],
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        limits: tuple[float, int] | None = None,
    ) -> _Answer:
        timeout_s, most_bytes = limits or _OF_ANSWERS
        url = self.url.rstrip("/") + path
        request = urllib.request.Request(url, data=body, headers=dict(headers or {}), method=method)  # noqa: S310 - the scheme was looked at
        try:
            try:
                response = self._opener.open(request, timeout=timeout_s)
            except urllib.error.HTTPError as err:
                response = err
            with response:
                data = response.read(most_bytes + 1)
                answer = _Answer(status=response.status or 0, headers=response.headers, body=data)
        except (OSError, ValueError, http.client.HTTPException) as err:
            message = f"{url} does not answer: {getattr(err, 'reason', None) or err}"
            raise FailureError(message) from err
        if len(data) > most_bytes:
            message = f"{url} answered with more than {most_bytes} bytes"
            raise FailureError(message)
        if not 200 <= answer.status < 300 and answer.status != _PAYMENT_DUE:  # noqa: PLR2004 - what HTTP calls success
            raise FailureError(_problem(url, answer))
        return answer


def _on_sale(one: Mapping[str, Any]) -> OnSale:
    return OnSale(**{known.name: one[known.name] for known in fields(OnSale)})


def _problem(url: str, answer: _Answer) -> str:
    """Say what a market says is wrong, in its words but no more of them than a line."""
    try:
        found = answer.json(url)
        return f"{url} refused: {str(found.get('code'))[:40]}: {str(found.get('detail'))[:300]}"
    except HarnessError:
        return f"{url} answered with status {answer.status}"


def _requirements(answer: _Answer) -> dict[str, Any]:
    """Return what x402 wants paid: the header, decoded."""
    try:
        found = loads(base64.b64decode(answer.headers.get("PAYMENT-REQUIRED", ""), validate=True))
    except (binascii.Error, ValueError, RecursionError) as err:
        message = "a payment is due, but the market does not say how in x402's header"
        raise FailureError(message) from err
    return found if isinstance(found, dict) else {}


def _rates(report: Any, device: str) -> tuple[Proven, ...]:
    from harness.scoring.capability import capability

    seen = next((one for one in capability(report) if one.device_uuid == device), None)
    if seen is None:
        what = f"the report has nothing of the device {device!r}, which it is named for"
        raise ForgeryError(what)
    return tuple(
        Proven(
            work_class=rate.work_class,
            low_per_s=rate.low_per_s,
            high_per_s=rate.high_per_s,
            unit=rate.unit,
            state=rate.state,
            measured_by=rate.point,
        )
        for rate in seen.rates
    )
