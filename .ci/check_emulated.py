"""Checks what an emulated run must say of itself: all points measured, marked emulated, and not priced."""

from __future__ import annotations

import json
import sys
from pathlib import Path

document = json.loads(Path(sys.argv[1]).read_text().splitlines()[-1])
(entry,) = document["reports"]
report = entry["report"]
(quote,) = document["quotes"]
_QUICK = {"chase", "decode", "fft", "gemm", "launch", "prefill", "sha256", "stream"}
measured = {o["measurement"]["job"]["benchmark"] for o in report["outcomes"] if o["measurement"]}
problems = [
    text
    for text, wrong in (
        ("the report does not say that it is emulated", not report["emulated"]),
        ("the quote has a price", quote["status"] != "withheld" or quote["price_usd_per_hour"] is not None),
        (f"measured only {sorted(measured)}", measured != _QUICK),
        ("a planned job has no measurement", not all(o["measurement"] for o in report["outcomes"])),
        ("the plan was not finished", len(report["plan"]) != len(report["outcomes"])),
    )
    if wrong
]
if problems:
    sys.exit("; ".join(problems))
print(f"emulated run: {len(report['outcomes'])} measurements, marked emulated, no price: {quote['reasons'][0]}")  # noqa: T201
