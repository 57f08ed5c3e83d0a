"""What a checkup found, as a table: what cannot be, what should not be, and the rest."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from harness.cluster.doctor import Finding

__all__ = ["checkup"]

_STYLES = {"ok": "green", "unknown": "dim", "warning": "yellow", "cannot": "red"}


def checkup(findings: Sequence[Finding]) -> RenderableType:
    """Return findings in their order, a subject a block, and a line that sums them up."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in ("subject", "status", "topic"):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for subject, group in itertools.groupby(findings, key=lambda f: f.subject):
        for n, finding in enumerate(group):
            said = Text(finding.what, style="dim" if finding.status == "unknown" else "")
            if finding.advice:
                said.append(f"\nto mend it: {finding.advice}", style="bold")
            name = Text(subject if n == 0 else "", style="bold cyan")
            table.add_row(name, Text(finding.status, style=_STYLES[finding.status]), Text(finding.topic), said)
    return Group(table, Text(), _sum(findings))


def _sum(findings: Sequence[Finding]) -> Text:
    blocking = [f for f in findings if f.blocks]
    if blocking:
        subjects = ", ".join(dict.fromkeys(f"{f.subject} {f.topic}" for f in blocking))
        return Text(f"something that is there cannot be measured: {subjects}", style="red")
    warnings = sum(f.status == "warning" for f in findings)
    usable = [f.subject for f in findings if f.topic == "device" and f.status in {"ok", "warning"}]
    told = f"{warnings} warning{'' if warnings == 1 else 's'}" if warnings else "nothing to mend"
    return Text(f"can be measured: {', '.join(usable) or 'nothing'}; {told}", style="yellow" if warnings else "green")
