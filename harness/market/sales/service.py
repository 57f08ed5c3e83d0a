"""`harness serve`: a seller's folder of reports, key and terms put together into a service, and kept running."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import FailureError, MisuseError
from harness.market.listen import listen
from harness.market.offers.secp256k1 import load_signer
from harness.market.offers.urls import is_root
from harness.market.sales.docket import Docket
from harness.market.sales.facilitator import Facilitator, HttpFacilitator, LocalFacilitator
from harness.market.sales.journal import Journal
from harness.market.sales.limits import Limits
from harness.market.sales.shop import Seller, Shop, Token
from harness.market.sales.till import Till

if TYPE_CHECKING:
    from harness.market.sales.counter import Counter, Fulfil

__all__ = ["TOKENS", "counter", "serve", "token_of"]

TOKENS = {
    "base": Token(
        address="0x833589fcd6edb6e08f4c7c32d4f71b54bda02913", chain_id=8453, decimals=6, name="USD Coin", version="2"
    ),
    "base-sepolia": Token(
        address="0x036cbd53842c5426634e7929541ec2318f3dcf7e", chain_id=84532, decimals=6, name="USDC", version="2"
    ),
    "celo": Token(
        address="0xceba9300f2b948710d2653dd7b07f33a8b32118c", chain_id=42220, decimals=6, name="USDC", version="2"
    ),
}
"""USDC where EIP-3009 and facilitators are. Read name, version and decimals from the contract before real money."""

_TRIAL = "trial"
_HEAD_S, _IDLE_S, _STOP_S = 10.0, 30.0, 35  # the last longer than settling may take
_TOKEN_PARTS = 5


def token_of(text: str) -> Token:
    """Return a token by its name here, or by CHAIN:ADDRESS:DECIMALS:NAME:VERSION.

    Raises:
        MisuseError: it is neither, or such a token cannot be.
    """
    if text in TOKENS:
        return TOKENS[text]
    parts = text.split(":")
    if len(parts) != _TOKEN_PARTS or not (parts[0].isdecimal() and parts[2].isdecimal()):
        message = f"token {text!r}; it should be one of {', '.join(TOKENS)}, or CHAIN:ADDRESS:DECIMALS:NAME:VERSION"
        raise MisuseError(message)
    chain, address, decimals, name, version = parts
    return Token(address=address.lower(), chain_id=int(chain), decimals=int(decimals), name=name, version=version)


def serve(  # noqa: PLR0913 - it mirrors the command
    folder: str | Path,
    *,
    key: str | Path,
    seller: Seller,
    facilitator: str | Facilitator,
    journal: str | Path = "quotes.db",
    host: str = "127.0.0.1",
    port: int = 8402,
    url: str | None = None,
    limits: Limits | None = None,
    fulfil: Fulfil | None = None,
    started: Callable[[str], None] = lambda _: None,
) -> None:
    """Sell the devices of a folder of reports in the foreground until SIGINT or SIGTERM.

    Args:
        folder: of reports, as `harness run` writes them; it is looked at again every few seconds.
        key: file with the key that signs prices.
        seller: terms.
        facilitator: URL of an x402 facilitator; `trial` checks signatures and moves nothing; or one of your own.
        journal: file in which what was sold is kept.
        host: address to listen at; from 127.0.0.1 nobody else can reach it.
        port: 0 takes a free one.
        url: under which buyers reach it; payments are signed for it. Needed unless the host is this machine alone.
        limits: of what one address may do.
        fulfil: called once for each sale that was paid for; what it returns is the delivery.
        started: told the URL once somebody may connect.

    Raises:
        MisuseError: an option does not fit, or there is no such key.
        FailureError: an extra is not installed, the address cannot be had, or another process has the journal.
        ForgeryError: the journal is none.
    """
    try:
        from harness.market.sales.door import app
    except ImportError as err:
        message = (
            f"`harness serve` needs the extras serve, sign and pay: pip install 'gpu-assay[serve,sign,pay]' ({err})"
        )
        raise FailureError(message) from err
    local = _is_local(host)
    if not local and url is None:
        message = f"--host {host} lets others in: say by --url under which URL they reach it, for payments are signed for that"
        raise MisuseError(message)
    if url is not None and not is_root(url):
        message = f"--url {url!r}; it should be a URL such as https://gpus.example, without a query"
        raise MisuseError(message)
    if not local and facilitator == _TRIAL:
        message = f"--facilitator {_TRIAL} takes no money: it is for 127.0.0.1 only"
        raise MisuseError(message)
    asked = _facilitator(facilitator, seller.token)
    with _alone(Path(journal)):

        def made(own: str) -> object:
            return app(counter(folder, key, seller, asked, journal, (url or own).rstrip("/"), fulfil), limits)

        listen(made, host, port, started, head_s=_HEAD_S, idle_s=_IDLE_S, stop_s=_STOP_S, lifespan=True)


def counter(  # noqa: PLR0913 - what a service is made of
    folder: str | Path,
    key: str | Path,
    seller: Seller,
    facilitator: str | Facilitator,
    journal: str | Path,
    url: str,
    fulfil: Fulfil | None = None,
) -> Counter:
    """Put a service together; the arguments are those of `serve`.

    Raises:
        MisuseError: there is no such folder or key.
        FailureError: an extra is not installed.
        ForgeryError: the journal is none.
    """
    from harness.market.sales.counter import Counter, lease
    from harness.market.sales.paywall import Paywall

    if not Path(folder).is_dir():
        message = f"there is no folder {str(folder)!r} of reports"
        raise MisuseError(message)
    signer = load_signer(key)
    seller = replace(seller, pay_to=seller.pay_to or signer.address)
    book = Journal(journal)
    asked = _facilitator(facilitator, seller.token)
    return Counter(
        shop=Shop(folder=Path(folder), seller=seller, signer=signer, url=url),
        journal=book,
        till=Till(book, asked),
        paywall=Paywall(seller.token, url.split("//", 1)[-1]),
        docket=Docket(book),
        url=url,
        fulfil=fulfil or lease,
    )


def _facilitator(given: str | Facilitator, token: Token) -> Facilitator:
    if not isinstance(given, str):
        return given
    if given == _TRIAL:
        return LocalFacilitator(name=token.name, version=token.version)
    if not is_root(given):
        message = f"--facilitator {given!r}; it should be a URL, or {_TRIAL}"
        raise MisuseError(message)
    return HttpFacilitator(given)


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _alone(journal: Path) -> Iterator[None]:
    """Keep other services from a journal: one that starts ends what another has begun."""
    path = journal.with_name(journal.name + ".lock")
    try:
        file = path.open("a+", encoding="ascii")
    except OSError as err:
        message = f"cannot lock the journal {str(journal)!r}: {err.strerror}"
        raise FailureError(message) from err
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            message = f"another process sells by the journal {str(journal)!r}"
            raise FailureError(message) from err
        yield
