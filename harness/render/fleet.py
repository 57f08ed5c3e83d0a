"""A fleet's nodes as a table. Apart from `text`, because what it shows comes from rooms that bring NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from harness.cluster.census import Member, objection
from harness.model import Device
from harness.render.tables import blank_table

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["census_table"]

_COLUMNS = ("node", "address", "state", "device", "model", "memory GiB", "driver", "harness", "Ray", "Python", "remark")


def census_table(members: Sequence[Member]) -> RenderableType:
    """Return one line a device, and one for a node that shows none."""
    table = blank_table(*_COLUMNS, right=["memory GiB"], wrap=["model"], spare=["Python", "Ray", "harness"])
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
