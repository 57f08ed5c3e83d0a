"""Measure GPUs, prove what was measured, score it and price it.

Every command is a function here, by the same name: `run`, `devices`, `list`, `score`, `quote`, `compare`, `verify`, `keygen`,
`schema`, `serve_bench`; `fleet` is `harness fleet report`, `export` is `harness fleet export`, and `node` is
`harness node start`, `verifier` is `harness verifier serve`, and `prover` is `harness prover run`. Each is imported when it is first used,
so that `import harness` loads nothing heavy.

    import harness
    finished = harness.run("stream", "gemm", device="cpu")
    print(harness.quote(finished[0].report)[0].price_usd_per_hour)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.cluster.nodes import node
    from harness.cluster.replay import audit, prove
    from harness.cluster.session import Finished, devices, run
    from harness.codec import schema
    from harness.errors import FailureError, ForgeryError, HarnessError, MisuseError, WrongAnswerError
    from harness.inference.serve_bench import serve_bench
    from harness.market.prove import prover
    from harness.market.serve import verifier
    from harness.measure.compare import compare
    from harness.model import Device, Measurement, Quote, Report, Score, Verdict
    from harness.proof.by_file import challenge, check
    from harness.proof.signing import keygen
    from harness.proof.verify import verify
    from harness.registry import Case, Skip, Work, benchmark
    from harness.registry import find as list  # noqa: A004 - the command's name
    from harness.scoring.costs import Costs, load_costs
    from harness.scoring.evidence import fleet, load, quote, score
    from harness.scoring.parquet import export

_HOMES = {
    "harness.cluster.nodes": ("node",),
    "harness.cluster.replay": ("audit", "prove"),
    "harness.cluster.session": ("Finished", "devices", "run"),
    "harness.codec": ("schema",),
    "harness.errors": ("FailureError", "ForgeryError", "HarnessError", "MisuseError", "WrongAnswerError"),
    "harness.inference.serve_bench": ("serve_bench",),
    "harness.market.prove": ("prover",),
    "harness.market.serve": ("verifier",),
    "harness.measure.compare": ("compare",),
    "harness.model": ("Device", "Measurement", "Quote", "Report", "Score", "Verdict"),
    "harness.proof.by_file": ("challenge", "check"),
    "harness.proof.signing": ("keygen",),
    "harness.proof.verify": ("verify",),
    "harness.registry": ("Case", "Skip", "Work", "benchmark", "list"),
    "harness.scoring.costs": ("Costs", "load_costs"),
    "harness.scoring.evidence": ("fleet", "load", "quote", "score"),
    "harness.scoring.parquet": ("export",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Case",
    "Costs",
    "Device",
    "FailureError",
    "Finished",
    "ForgeryError",
    "HarnessError",
    "Measurement",
    "MisuseError",
    "Quote",
    "Report",
    "Score",
    "Skip",
    "Verdict",
    "Work",
    "WrongAnswerError",
    "audit",
    "benchmark",
    "challenge",
    "check",
    "compare",
    "devices",
    "export",
    "fleet",
    "keygen",
    "list",
    "load",
    "load_costs",
    "node",
    "prove",
    "prover",
    "quote",
    "run",
    "schema",
    "score",
    "serve_bench",
    "verifier",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        msg = f"module 'harness' has no attribute {name!r}"
        raise AttributeError(msg)
    module = importlib.import_module(_HOME_OF[name])
    value: object = getattr(module, "find" if name == "list" else name)
    globals()[name] = value
    return value


def __dir__() -> tuple[str, ...]:
    return tuple(sorted(__all__))
