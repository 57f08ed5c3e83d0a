"""Measure GPUs, prove what was measured, score it and price it.

Every command is a function here, by the same name: `run`, `devices`, `list`, `score`, `quote`, `compare`, `report`, `verify`, `keygen`,
`schema`, `doctor`, `watch`, `offer`, `akash_price`, `serve_bench`, `serve`, `journal`, `mcp`, `challenge`, `prove`, `check`, `audit`;
`fleet` is `harness fleet report`, `export` is `harness fleet export`, `node`
is `harness node start`, `verifier` is `harness verifier serve`, `prover` is `harness prover run`,
`verdicts` is `harness verifier verdicts`, and `market_table` is `harness market table`.
Each is imported when it is first used, so that `import harness` loads nothing heavy.

    import harness
    finished = harness.run("stream", "gemm", device="cpu")
    print(harness.quote(finished[0].report)[0].price_usd_per_hour)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.cli.fleet_quotes import quote_on_ray
    from harness.cluster.checkup import doctor
    from harness.cluster.nodes import node
    from harness.cluster.replay import audit, prove
    from harness.cluster.session import Finished, devices, run
    from harness.cluster.telemetry import watch
    from harness.codec import schema
    from harness.errors import FailureError, ForgeryError, HarnessError, MisuseError, WrongAnswerError
    from harness.fitting.backtest import backtest, refit
    from harness.inference.serve_bench import serve_bench
    from harness.market.dialects.akash import bid as akash_price
    from harness.market.offers.offer import make_offer as offer
    from harness.market.sales.journal_check import check as journal
    from harness.market.sales.service import serve
    from harness.market.sales.shop import Seller, Token
    from harness.market.tools.agents import mcp, verify_quote
    from harness.market.verifier.prove import prover
    from harness.market.verifier.serve import verifier
    from harness.market.verifier.verdicts import verdicts
    from harness.measure.compare import compare
    from harness.model import Device, Measurement, Quote, Report, Score, Verdict
    from harness.proof.by_file import challenge, check
    from harness.proof.signing import keygen
    from harness.proof.verify import verify
    from harness.registry import Case, Skip, Work, benchmark
    from harness.registry import find as list  # noqa: A004 - the command's name
    from harness.render.report import report
    from harness.scoring.costs import Costs, load_costs
    from harness.scoring.evidence import fleet, load, price, quote, score
    from harness.scoring.market_model import Features, MarketModel
    from harness.scoring.parquet import export
    from harness.scoring.pricelist import market_table
    from harness.scoring.profiles import Profile, load_profile
    from harness.scoring.recompute import recompute
    from harness.scoring.terms import Deal

_HOMES = {
    "harness.cli.fleet_quotes": ("quote_on_ray",),
    "harness.cluster.checkup": ("doctor",),
    "harness.cluster.nodes": ("node",),
    "harness.cluster.replay": ("audit", "prove"),
    "harness.cluster.session": ("Finished", "devices", "run"),
    "harness.cluster.telemetry": ("watch",),
    "harness.codec": ("schema",),
    "harness.errors": ("FailureError", "ForgeryError", "HarnessError", "MisuseError", "WrongAnswerError"),
    "harness.fitting.backtest": ("backtest", "refit"),
    "harness.inference.serve_bench": ("serve_bench",),
    "harness.market.tools.agents": ("mcp", "verify_quote"),
    "harness.market.dialects.akash": ("akash_price",),
    "harness.market.sales.journal_check": ("journal",),
    "harness.market.offers.offer": ("offer",),
    "harness.market.verifier.prove": ("prover",),
    "harness.market.verifier.serve": ("verifier",),
    "harness.market.sales.service": ("serve",),
    "harness.market.sales.shop": ("Seller", "Token"),
    "harness.market.verifier.verdicts": ("verdicts",),
    "harness.measure.compare": ("compare",),
    "harness.model": ("Device", "Measurement", "Quote", "Report", "Score", "Verdict"),
    "harness.proof.by_file": ("challenge", "check"),
    "harness.proof.signing": ("keygen",),
    "harness.proof.verify": ("verify",),
    "harness.registry": ("Case", "Skip", "Work", "benchmark", "list"),
    "harness.render.report": ("report",),
    "harness.scoring.costs": ("Costs", "load_costs"),
    "harness.scoring.evidence": ("fleet", "load", "price", "quote", "score"),
    "harness.scoring.market_model": ("Features", "MarketModel"),
    "harness.scoring.parquet": ("export",),
    "harness.scoring.price": ("Deal",),
    "harness.scoring.pricelist": ("market_table",),
    "harness.scoring.profiles": ("Profile", "load_profile"),
    "harness.scoring.recompute": ("recompute",),
}
_SPELT = {
    "akash_price": "bid",
    "journal": "check",
    "list": "find",
    "offer": "make_offer",
}  # where a command's name is not its function's
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Case",
    "Costs",
    "Deal",
    "Device",
    "FailureError",
    "Features",
    "Finished",
    "ForgeryError",
    "HarnessError",
    "MarketModel",
    "Measurement",
    "MisuseError",
    "Profile",
    "Quote",
    "Report",
    "Score",
    "Seller",
    "Skip",
    "Token",
    "Verdict",
    "Work",
    "WrongAnswerError",
    "akash_price",
    "audit",
    "backtest",
    "benchmark",
    "challenge",
    "check",
    "compare",
    "devices",
    "doctor",
    "export",
    "fleet",
    "journal",
    "keygen",
    "list",
    "load",
    "load_costs",
    "load_profile",
    "market_table",
    "mcp",
    "node",
    "offer",
    "price",
    "prove",
    "prover",
    "quote",
    "quote_on_ray",
    "recompute",
    "refit",
    "report",
    "run",
    "schema",
    "score",
    "serve",
    "serve_bench",
    "verdicts",
    "verifier",
    "verify",
    "verify_quote",
    "watch",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        msg = f"module 'harness' has no attribute {name!r}"
        raise AttributeError(msg)
    module = importlib.import_module(_HOME_OF[name])
    value: object = getattr(module, _SPELT.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> tuple[str, ...]:
    return tuple(sorted(__all__))
