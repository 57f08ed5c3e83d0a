"""A fleet's nodes as a table. Apart from `text`, because what it shows comes from rooms that bring NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from harness.cluster.census import Member, objection
from harness.model import Device

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["census_table"]

_COLUMNS = ("node", "address", "state", "device", "model", "memory GiB", "driver", "harness", "Ray", "Python", "remark")


def census_table(members: Sequence[Member]) -> RenderableType:
    """Return one line a device, and one for a node that shows none."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in _COLUMNS:
        last = name == _COLUMNS[-1]
        table.add_column(name, justify="right" if "GiB" in name else "left", no_wrap=not last, overflow="fold")
    for member in members:
        for row in _rows(member):
            table.add_row(*map(Text, row))
    return table


def _rows(member: Member) -> Iterator[tuple[str, ...]]:
    where = (member.name, member.ip or "")
    if member.inventory is None:
        yield (*where, member.state, *[""] * 7, member.reason or "")
        return
    known = member.inventory.environment
    versions = (known.harness_version, known.packages.get("ray", ""), known.python)
    for device in member.inventory.devices:
        remark = objection(member, device)
        yield (*where, "not usable" if remark else "usable", *_told(device), *versions, remark or "")


def _told(device: Device) -> tuple[str, ...]:
    memory = f"{device.memory_bytes / 2**30:.1f}" if device.memory_bytes else ""
    return (device.selector, device.name, memory, device.driver or "")
