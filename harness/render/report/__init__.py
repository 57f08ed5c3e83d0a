"""Reports for people: one HTML file that needs nothing else, Markdown for a pull request, a table for a spreadsheet.

Records become views (plain data, made by pure functions), views become figures, and only `page` knows how a page is written.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import FailureError, MisuseError
from harness.model import Report
from harness.scoring.evidence import Source, load_quickly

if TYPE_CHECKING:
    from harness.render.report.views import Page

__all__ = ["report", "view"]


def report(
    *reports: Source,
    html: str | Path | None = None,
    csv: str | Path | None = None,
    parquet: str | Path | None = None,
    proofs: Sequence[str | Path] = (),
) -> str:
    """Write what reports say into the files that are named, and return it as Markdown.

    Args:
        reports: files, bytes, records, folders, or Parquet files of `harness fleet export`; each report is verified first.
        html: a page to be opened anywhere, without a network; needs the extra `report`.
        csv: one row an outcome, for a spreadsheet.
        parquet: the same with every raw time, for programs.
        proofs: transcripts of challenges to the devices, which are judged anew.

    Raises:
        MisuseError: there is no such file, or a transcript is about none of the devices.
        ForgeryError: a file is not a report, or was changed.
        FailureError: a file cannot be written, or the extra is not installed.
    """
    from harness.render.report.markdown import page_markdown

    held = tuple(_gathered(reports))
    page = view(*held, proofs=proofs)
    if html is not None:
        from harness.render.report.page import page_html

        drawn = page_html(page)
        _written(Path(html), lambda path: path.write_text(drawn, encoding="utf-8"))
    if csv is not None:
        _written(Path(csv), lambda path: _csv(held, path))
    if parquet is not None:
        from harness.scoring.parquet import export

        export(*held, out=parquet)
    return page_markdown(page)


def view(*reports: Source, proofs: Sequence[str | Path] = ()) -> Page:
    """Return what reports show, as data: the page before it is drawn.

    Raises:
        MisuseError: there is no such file, or no report was given.
        ForgeryError: a file is not a report, or was changed.
    """
    from harness.render.report.build import page_of

    held = tuple(_gathered(reports))
    if not held:
        message = "no report was given; there should be one or more"
        raise MisuseError(message)
    version = importlib.metadata.version("gpu-assay")
    dates = sorted(r.created_at for r in held)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    from harness.render.report.words import tame

    return page_of(held, f"Measured {tame(when, 60)}; drawn by harness {version}", proofs)


def _gathered(sources: tuple[Source, ...]) -> Iterator[Report]:
    """Yield the reports of files, folders and Parquet files."""
    for source in sources:
        if isinstance(source, str | Path) and Path(source).suffix == ".parquet":
            from harness.scoring.parquet import read

            yield from read(source)
        elif isinstance(source, str | Path) and Path(source).is_dir():
            found = sorted(Path(source).glob("[0-9]*.json"))
            if not found:
                message = f"no report in {str(source)!r}: none of its files is named as `harness run` names them"
                raise MisuseError(message)
            yield from map(load_quickly, found)
        else:
            yield load_quickly(source)


def _csv(reports: tuple[Report, ...], path: Path) -> None:
    from harness.render.report.sheet import write_csv

    with path.open("w", encoding="utf-8", newline="") as file:
        write_csv(reports, file)


def _written(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, and then put it there whole."""
    if not path.name:
        message = f"{str(path)!r} is a folder: name a file in it"
        raise MisuseError(message)
    beside = path.with_name(f"{path.name}.partial")
    try:
        write(beside)
        beside.replace(path)
    except OSError as err:
        message = f"cannot write {str(path)!r}: {err.strerror or err}"
        raise FailureError(message) from err
    finally:
        beside.unlink(missing_ok=True)
