"""`harness offer`, `harness akash-price` and `harness keygen --quotes`, as people and markets call them."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner, Result
from offers import GLM, NOW_S, USDC, quoted
from test_market_views import ORDER

from harness import codec
from harness.cli import cli
from harness.errors import ForgeryError, MisuseError
from harness.market.dialects.views import VIEWS

AT = ("--at", str(NOW_S))
TERMS = f"""
pay_to = "0x{"22" * 20}"
asset = "{USDC}"
asset_decimals = 6
chain_id = 8453
escrow = "0x{"33" * 20}"
evaluator = "0x{"44" * 20}"
"""
WORDS = {
    "x402": ("url={url}", "token_name=USD Coin", "token_version=2", "units=600"),
    "mpp": ("url={url}",),
    "erc8004": ("name=n", "description=d", "mcp=https://gpu.example/mcp"),
    "erc8183": ("units=600", f"expired_at={NOW_S + 9999}"),
    "commerce": ("operator=0x" + "77" * 20, "payer=0x" + "66" * 20),
    "golem": ("model=H100",),
    "a2a": ("url=https://gpu.example", "name=n", "description=d", "version=1"),
}


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in args], catch_exceptions=True)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a quote, a key, terms, and an offer made of them; and one in GLM."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "quote-1.json").write_bytes(codec.encode(quoted()))
    assert run("keygen", "--quotes", "--out", folder / "key").exit_code == 0
    glm = TERMS.replace(USDC, GLM).replace("8453", "137").replace("decimals = 6", "decimals = 18")
    for name, terms in (("usdc", TERMS), ("glm", glm + 'usd_per_asset = "0.2"\n')):
        (folder / f"{name}.toml").write_text(terms)
        made = run("offer", "make", folder / "quote-1.json", "--terms", folder / f"{name}.toml", "--key", folder / "key", "--out", folder / f"{name}.json", *AT)  # fmt: skip
        assert made.exit_code == 0, made.output
        assert made.stderr.startswith("device salt 0x")
    return folder


@pytest.mark.parametrize("view", VIEWS)
def test_an_offer_goes_through_each_view_and_back(shop: Path, view: str, tmp_path: Path) -> None:
    file = shop / ("glm.json" if view == "golem" else "usdc.json")
    quote_id = json.loads(file.read_text())["quote"]["quoteId"]
    words = [w.format(url=f"https://gpu.example/{quote_id}/accept") for w in WORDS.get(view, ())]
    sets = [part for word in words for part in ("--set", word)]
    shown = run("offer", "show", file, "--view", view, "--key", shop / "key", "--out", tmp_path / "shown", *sets)
    assert shown.exit_code == 0, shown.exception
    back = run("offer", "read", tmp_path / "shown", "--view", view)
    if VIEWS[view].read is None:
        assert isinstance(back.exception, MisuseError)
    else:
        assert back.stdout == file.read_text() + "\n"
    if words:
        short = run("offer", "show", file, "--view", view, "--key", shop / "key", *sets[2:])
        assert "is missing" in str(short.exception)
        odd = run("offer", "show", file, "--view", view, "--key", shop / "key", *sets, "--set", "colour=red")
        assert "colour is unknown" in str(odd.exception)


def test_an_offer_is_checked_and_a_changed_one_refused(shop: Path, tmp_path: Path) -> None:
    file = shop / "usdc.json"
    said = run("offer", "verify", file, "--quote", shop / "quote-1.json", *AT)
    assert "price follows from the quote\npromise follows from the quote" in said.stdout
    told = json.loads(run("offer", "verify", file, *AT, "--json").stdout)
    assert told["max_total_atomic"] == str(int((quoted().price_usd_per_hour or Decimal(0)) * 10**6))
    assert isinstance(run("offer", "verify", file).exception, MisuseError)  # long over
    assert run("offer", "verify", file, "--any-time").exit_code == 0
    forged = tmp_path / "forged.json"
    forged.write_text(file.read_text().replace('"minUnits":"60"', '"minUnits":"61"'))
    assert isinstance(run("offer", "verify", forged, *AT).exception, ForgeryError)
    dearer = tmp_path / "quote-2.json"
    dearer.write_bytes(codec.encode(quoted()).replace(b'"price_usd_per_hour":"0', b'"price_usd_per_hour":"1'))
    refused = run("offer", "verify", file, "--quote", dearer, *AT)
    assert "$.quote.unitPriceAtomic" in str(refused.exception)
    own = tmp_path / "own.json"
    (tmp_path / "t.toml").write_text(TERMS + 'sla_tolerance = "0.1"\nusd_per_asset = "2"\n')
    made = ("offer", "make", shop / "quote-1.json", "--terms", tmp_path / "t.toml", "--key", shop / "key", "--out", own)
    assert run(*made, *AT).exit_code == 0
    asked = ("offer", "verify", own, "--quote", shop / "quote-1.json", *AT)
    told = json.loads(run(*asked, "--json").stdout)
    assert (told["follows_from_quote"], told["not_compared"]) == (None, ["promise", "price"])
    assert "not comparable: price" in run(*asked).stdout
    assert json.loads(run(*asked, "--tolerance", "0.1", "--usd-per-asset", "2", "--json").stdout)["follows_from_quote"]
    assert isinstance(run(*asked, "--tolerance", "0.2").exception, ForgeryError)
    jsonschema.validate(json.loads(file.read_text()), json.loads(run("offer", "schema").stdout))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("colour = 1", "no term 'colour'"),
        ("agent_id = 1.5", "whole number or text"),
        ("usd_per_asset = 1", "decimals as text"),
    ],
)
def test_a_sellers_file_is_read_strictly(shop: Path, tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "t.toml").write_text(TERMS + line)
    made = run("offer", "make", shop / "quote-1.json", "--terms", tmp_path / "t.toml", "--key", shop / "key", *AT)
    assert said in str(made.exception)


def test_two_offers_of_one_quote_share_neither_nonce_nor_salt(shop: Path) -> None:
    args = ("offer", "make", shop / "quote-1.json", "--terms", shop / "usdc.toml", "--key", shop / "key", *AT)
    first, second = (json.loads(run(*args).stdout)["quote"] for _ in range(2))
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"nonce", "deviceCommitment", "quoteId"}


# --- Akash ------------------------------------------------------------------------------------------------------------


def bid(shop: Path, *more: str, order: str | None = None) -> subprocess.CompletedProcess[str]:
    code = f"""
import sys
sys.argv = ["harness", "akash-price", "--quotes", {str(shop)!r}, "--at", "{NOW_S}", *{list(more)!r}]
from harness.__main__ import main
try:
    main()
finally:
    sys.stderr.write("\\n" + " ".join(sys.modules))
"""
    text = json.dumps(ORDER) if order is None else order
    return subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, check=False)


def test_akash_gets_one_decimal_from_few_modules(shop: Path) -> None:
    done = bid(shop, "--usd-per-akt", "0.5")
    assert done.returncode == 0, done.stderr
    exact = (quoted().price_usd_per_hour or Decimal(0)) * Decimal("6.117") / 3600 * 2 * 10**6
    assert 0 <= Decimal(done.stdout) - exact < Decimal("0.000001")
    loaded = done.stderr.splitlines()[-1].split()
    assert len(loaded) < 260
    heavy = {
        "rich",
        "cryptography",
        "numpy",
        "pandas",
        "ray",
        "numba",
        "eth_account",
        "coincurve",
        "Crypto",
        "pydantic",
        "asyncio",
        "ssl",
    }
    assert not heavy & {name.split(".")[0] for name in loaded}


@pytest.mark.parametrize(
    ("more", "order", "said"),
    [
        ((), None, "--usd-per-akt"),
        (("--usd-per-akt", "x"), None, "not a number"),
        (("--usd-per-akt", "1"), "{", "not JSON"),
    ],
)
def test_where_akash_gets_no_bid_it_is_told_why(
    shop: Path, more: tuple[str, ...], order: str | None, said: str
) -> None:
    done = bid(shop, *more, order=order)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr.splitlines()[0]
