"""Tells what the nodes of a fleet are: which are there, and what each says of its own devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.cluster.fanout import connect, survey
from harness.cluster.local import inspect_here
from harness.cluster.task import Inventory
from harness.errors import FailureError
from harness.model import Device

__all__ = ["Member", "members", "objection", "take"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A node of a fleet. One that is silent or gone has no inventory, and says why."""

    state: Literal["here", "silent", "gone"]
    name: str
    ip: str | None = None
    place: str | None = None
    reason: str | None = None
    inventory: Inventory | None = None


def take(ray: str | None = None) -> tuple[Member, ...]:
    """Return the nodes of the fleet whose head is at an address; without one, this machine.

    Raises:
        MisuseError: there is no fleet at that address.
    """
    if ray is None:
        return tuple(Member(state="here", name=found.node.name, inventory=found) for found in inspect_here())
    with connect(ray) as cluster:
        return members(cluster.nodes(), survey(cluster))


def members(nodes: Sequence[Mapping[str, Any]], answers: Mapping[str, Inventory | FailureError]) -> tuple[Member, ...]:
    """Put together what the head knows of its nodes and what they answered.

    A node that left and came back is another node to Ray: of those that are gone, one whose address lives again is not told.
    """
    living = {node["NodeManagerAddress"] for node in nodes if node["NodeID"] in answers}
    gone = {node["NodeManagerAddress"]: node for node in nodes if node["NodeManagerAddress"] not in living}
    there = [_answered(node, answers[node["NodeID"]]) for node in nodes if node["NodeID"] in answers]
    return (*there, *(_gone(node) for node in gone.values()))


def objection(member: Member, device: Device) -> str | None:
    """Return why a device cannot or should not be measured, or None."""
    if device.unusable_reason or member.inventory is None:
        return device.unusable_reason
    seen = member.inventory.seen(device.uuid)
    return next(
        (f"{note.what}: {note.advice}" for note in (seen.notes if seen else ()) if note.severity == "refuse"), None
    )


def _answered(node: Mapping[str, Any], answer: Inventory | FailureError) -> Member:
    ip, place, name = node["NodeManagerAddress"], node["NodeID"], node["NodeManagerHostname"]
    if isinstance(answer, FailureError):
        return Member(state="silent", name=name, ip=ip, place=place, reason=str(answer))
    return Member(state="here", name=answer.node.name, ip=ip, place=place, inventory=answer)


def _gone(node: Mapping[str, Any]) -> Member:
    why = node.get("DeathReasonMessage") or "it has left"
    return Member(
        state="gone", name=node["NodeManagerHostname"], ip=node["NodeManagerAddress"], place=node["NodeID"], reason=why
    )
