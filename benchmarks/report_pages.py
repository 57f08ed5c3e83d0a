"""How long reports take to become a page and the page to open, and the pictures of the documents: `python benchmarks/report_pages.py`.

Opened in headless Chromium with the network cut, until the last drawing is made; each number is of one run. The fleets are made up
(`tests/madeup.py`), the CPU's report is one that a run of this program wrote. `--pictures FOLDER` writes the pictures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser import chromium, opened
from madeup import many
from test_report import recorded

from harness.model import Report
from harness.render.report import report

_TOP_PX = {1280: 1720, 390: 1640}  # what of a page is in a picture


def page(folder: Path, name: str, reports: list[Report]) -> Path:
    """Write a page, and say how long that took."""
    out, began = folder / f"{name}.html", time.monotonic()
    report(*reports, html=out)
    devices = sum(len(r.devices) for r in reports)
    took_s = time.monotonic() - began
    print(f"{name}: {len(reports)} reports, {devices} devices: {took_s:.1f} s to write {out.stat().st_size:,} bytes")
    return out


def look(browser: Any, path: Path, width: int, picture: Path | None) -> None:
    """Open a page, say how long that took, and keep a picture of its top."""
    with opened(browser, path, width=width) as seen:
        print(
            f"{path.stem} at {width} px: {seen.ready_s:.2f} s until drawn; said {seen.said}, asked for {len(seen.asked_for)}"
        )
        if picture is not None:
            clip = {"x": 0, "y": 0, "width": width, "height": _TOP_PX[width]}
            seen.page.screenshot(path=picture, full_page=True, clip=clip)


def main() -> None:
    """Write, open and, if asked to, picture the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--reports", type=int, default=500, metavar="N", help="of the large fleet, each of eight devices"
    )
    asked = parser.parse_args()

    def picture(name: str) -> Path | None:
        return asked.pictures and asked.pictures / f"report-{name}.png"

    with tempfile.TemporaryDirectory() as held, chromium() as browser:
        folder = Path(held)
        cpu = page(folder, "cpu", [recorded("cpu")])
        look(browser, cpu, 1280, picture("desktop"))
        look(browser, cpu, 390, picture("phone"))
        emulated = page(folder, "emulated", [recorded("emulated")])
        look(browser, emulated, 1280, picture("gpus-desktop"))
        look(browser, emulated, 390, picture("gpus-phone"))
        look(browser, page(folder, "fleet", many(64)), 1280, picture("fleet"))
        if asked.reports:
            look(browser, page(folder, "large", many(asked.reports)), 1280, None)


if __name__ == "__main__":
    main()
