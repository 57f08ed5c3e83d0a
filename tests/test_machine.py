"""Which machine a CPU is, and how much cache it has: from files of a kernel, of machines that are not at hand."""

from __future__ import annotations

import socket
import uuid
from pathlib import Path

import pytest
from fakefleet import ENVIRONMENT
from test_resume import die, head

from harness.cluster import session
from harness.cluster.journal import Journal
from harness.cluster.task import Inventory
from harness.device.cpu import _cache_bytes
from harness.device.machine import machine_uuid
from harness.errors import MisuseError
from harness.model import Node

DEBIAN = "88544b92092430bc5d3fbbffc12a2f04"  # as one image ships it to everybody


def cache(root: Path, cpu: int, index: int, *facts: str) -> None:
    folder = root / f"cpu{cpu}" / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    for name, fact in zip(("level", "type", "size", "shared_cpu_list"), facts, strict=True):
        (folder / name).write_text(f"{fact}\n")


def test_each_slice_of_a_cache_counts_once_and_only_where_we_may_run(tmp_path: Path) -> None:
    """An EPYC 9654: twelve L3 of 32 MiB, each of eight cores."""
    for cpu in range(96):
        first = cpu // 8 * 8
        cache(tmp_path, cpu, 0, "1", "Data", "32K", str(cpu))
        cache(tmp_path, cpu, 1, "1", "Instruction", "64K", str(cpu))
        cache(tmp_path, cpu, 2, "2", "Unified", "1024K", str(cpu))
        cache(tmp_path, cpu, 3, "3", "Unified", "32768K", f"{first}-{first + 7}")
    assert _cache_bytes(3, range(96), tmp_path) == 384 << 20
    assert _cache_bytes(3, range(4, 20), tmp_path) == 96 << 20
    assert _cache_bytes(2, (0,), tmp_path) == 1 << 20
    assert _cache_bytes(1, (0,), tmp_path) == 32 << 10
    assert _cache_bytes(4, range(96), tmp_path) is None


def machine(root: Path, text: str | None, *, container: bool = False) -> str:
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/machine-id").unlink(missing_ok=True)
    if text is not None:
        (root / "etc/machine-id").write_text(text)
    return machine_uuid("AMD EPYC 9654", root, {"container": "podman"} if container else {})


def test_an_ordinary_machine_is_named_by_its_machine_id_for_ever(tmp_path: Path) -> None:
    assert machine(tmp_path, f"{DEBIAN}\n") == "CPU-84909856-94cb-52ee-bce7-fd4d2ec6dd15"


@pytest.mark.parametrize("text", ["", "\n", "uninitialized\n"])
@pytest.mark.parametrize("container", [False, True])
def test_a_machine_id_that_says_nothing_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, *, container: bool
) -> None:
    named = set()
    for mac in (0x0242AC110002, 0x0242AC110003):
        monkeypatch.setattr(uuid, "getnode", lambda mac=mac: mac)
        named.add(machine(tmp_path, text, container=container))
        assert machine(tmp_path, text, container=container) == machine(tmp_path, None, container=container)
    assert len(named) == 2


def test_containers_of_one_image_on_two_hosts_are_two_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = set()
    for host in ("host-a", "host-b"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        named.add(machine(tmp_path, DEBIAN, container=True))
    assert len(named) == 2


def test_a_machine_without_an_address_is_the_same_in_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter((0x0142AC110002, 0x0342AC110003))
    monkeypatch.setattr(uuid, "getnode", lambda: next(drawn))
    assert machine(tmp_path, None) == machine(tmp_path, None)


def test_a_report_is_resumed_on_its_own_node_of_those_that_look_alike(tmp_path: Path) -> None:
    found = [
        Inventory(node=Node(name=name), environment=ENVIRONMENT, devices=head(1).devices)
        for name in ("host-a", "host-b")
    ]
    journals = [Journal(tmp_path, head(1, name), None) for name in ("host-a", "host-b", "a label")]
    assert [session._rest(journal, found).inventory.node.name for journal in journals[:2]] == ["host-a", "host-b"]
    assert session._rest(journals[2], found[:1]).inventory == found[0]
    with pytest.raises(MisuseError, match="host-a, host-b say that they are the same machine, and none is a label"):
        session._rest(journals[2], found)
    for journal in journals:
        die(journal)


def test_a_label_is_for_one_node() -> None:
    seen = [
        (Inventory(node=Node(name=name), environment=ENVIRONMENT, devices=head(1).devices), head(1).devices)
        for name in ("host-a", "host-b")
    ]
    assert [inventory.node.name for inventory, _ in session._labelled(seen[:1], "rack7")] == ["rack7"]
    assert session._labelled(seen, None) == seen
    with pytest.raises(MisuseError, match="the label 'rack7' is for one node, and there are 2: host-a, host-b"):
        session._labelled(seen, "rack7")
