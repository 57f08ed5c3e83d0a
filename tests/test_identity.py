"""Is a device what it says it is: each lie is told by the view that was forgotten, and what nobody says is unknown, never good."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from click.testing import CliRunner
from test_sensors import H100, RTX_4090, Child, Json, answer_requests, build, child

from harness.cli.inspect import devices as devices_command
from harness.device import identity
from harness.device.crosscheck import attested, bus_id, cpu_checks, duplicates, gpu_checks
from harness.device.facts import Attestation, Check
from harness.device.sensors import NvmlIdentity, nvml_devices, nvml_identities
from harness.device.witnesses import Examined, Extra, Roots, cpu_facts, examine_with, gpu_facts, mount_of
from harness.model import Device, Environment, Node, Report, Seal

UUID = "GPU-9221d5d1-b60b-a624-bf14-0a1819cfda3b"
NVML = Device(
    uuid=UUID,
    name="NVIDIA H100 80GB HBM3",
    kind="cuda",
    selector="cuda:0",
    memory_bytes=85899345920,
    compute_capability="9.0",
    pci_bus_id="00000000:62:00.0",
    pcie_generation_max=5,
    pcie_width_max=16,
    vbios="96.00.99.00.01",
    driver="580.95.05",
    mig_enabled=False,
    power_limit_w=700.0,
    power_default_limit_w=700.0,
    sensors={},
)
CUDA = replace(NVML, pci_bus_id="0000:62:00.0", memory_bytes=84929544192, sm_count=132, vbios=None, driver=None)
MORE = NvmlIdentity(pci_device_id=0x233010DE, core_count=132 * 128, virtualization_mode=0)
INFORMATION = """Model: \t\t NVIDIA H100 80GB HBM3
IRQ:   \t\t 10
GPU UUID: \t GPU-9221d5d1-b60b-a624-bf14-0a1819cfda3b
Video BIOS: \t 96.00.99.00.01
Bus Type: \t PCIe
Bus Location: \t 0000:62:00.0
GPU Firmware: \t 580.95.05
"""
PLAIN = """22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
"""
# What NVIDIA's container runtime makes: a tmpfs, and the card's own folder bound into it.
CONTAINER = (
    PLAIN
    + """40 22 0:90 / /proc/driver/nvidia rw,nosuid - tmpfs tmpfs rw,mode=555
41 40 0:21 /driver/nvidia/gpus/0000:62:00.0 /proc/driver/nvidia/gpus/0000:62:00.0 ro shared:1 master:2 - proc proc rw
"""
)
FILE = PurePosixPath("/proc/driver/nvidia/gpus/0000:62:00.0/information")


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """Lay out /proc and /sys of an honest machine with one H100."""
    files = {
        "proc/driver/nvidia/gpus/0000:62:00.0/information": INFORMATION,
        "proc/self/mountinfo": CONTAINER,
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: EPYC\n\nprocessor\t: 1\nmodel name\t: EPYC\n",
        "sys/devices/system/cpu/present": "0-3\n",
        "sys/devices/system/node/online": "0-1\n",
        "sys/module/nvidia/version": "580.95.05\n",
        "sys/bus/pci/devices/0000:62:00.0/vendor": "0x10de\n",
        "sys/bus/pci/devices/0000:62:00.0/device": "0x2330\n",
        "sys/bus/pci/devices/0000:62:00.0/max_link_speed": "32.0 GT/s PCIe\n",
        "sys/bus/pci/devices/0000:62:00.0/max_link_width": "16\n",
        "sys/bus/pci/devices/0000:62:00.0/numa_node": "1\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Roots(tmp_path / "proc", tmp_path / "sys")


def verdicts(checks: tuple[Check, ...]) -> dict[str, str]:
    return {check.name: check.verdict for check in checks}


def judged(
    roots: Roots, nvml: Device = NVML, cuda: Device | None = CUDA, more: NvmlIdentity = MORE
) -> dict[str, Check]:
    return {c.name: c for c in gpu_checks(gpu_facts(roots, nvml, (cuda,) if cuda else (), more))}


def test_an_honest_machine_agrees_on_everything(roots: Roots) -> None:
    assert {c.verdict for c in judged(roots).values()} == {"agree"}, judged(roots)


def test_a_machine_that_shows_nothing_is_unknown_not_good(tmp_path: Path) -> None:
    nothing = Device(uuid="GPU-?", name="NVIDIA Silent", kind="cuda", selector="cuda:0", sensors={})
    found = gpu_checks(gpu_facts(Roots(tmp_path / "proc", tmp_path / "sys"), nothing, ()))
    assert {c.verdict for c in found} == {"unknown"}
    assert all(c.reason for c in found)


@pytest.mark.parametrize(
    ("nvml", "check", "words"),
    [
        ({"uuid": UUID.replace("9", "8")}, "uuid", "/proc"),
        ({"name": "NVIDIA H200"}, "model", "2330, which is a H100"),
        ({"vbios": "97.00.00.00.00"}, "vbios", "97.00"),
        ({"driver": "591.86"}, "driver of this system", "number of Windows drivers"),
        ({"driver": "575.57.08"}, "driver", "kernel module says '580.95.05'"),
        ({"memory_bytes": 150 << 30}, "memory", "79.1 GiB of the 150.0"),
        ({"compute_capability": "10.0"}, "compute capability", "CUDA says '9.0'"),
        ({"mig_enabled": True}, "whole card", "MIG is on"),
        ({"power_limit_w": 450.0}, "power limit", "450 of 700 W"),
        ({"pcie_generation_max": 6}, "link", "generation 6"),
    ],
)
def test_a_lie_of_nvml_is_told_by_the_side_that_it_forgot(
    roots: Roots, nvml: dict[str, Any], check: str, words: str
) -> None:
    found = judged(roots, nvml=replace(NVML, **nvml))[check]
    assert found.verdict == "disagree"
    assert words in found.reason


@pytest.mark.parametrize(
    ("more", "check"),
    [
        (MORE._replace(pci_device_id=0x268410DE), "PCI id"),
        (MORE._replace(core_count=114 * 128), "cores"),
        (MORE._replace(virtualization_mode=2), "whole card"),
    ],
)
def test_what_else_nvml_says_is_checked_too(roots: Roots, more: NvmlIdentity, check: str) -> None:
    assert judged(roots, more=more)[check].verdict == "disagree"


def test_a_slice_shows_in_what_cuda_gets(roots: Roots) -> None:
    slice_of_it = replace(CUDA, name="NVIDIA H100 80GB HBM3 MIG 1g.10gb", sm_count=16, memory_bytes=10 << 30)
    found = judged(roots, cuda=slice_of_it)
    assert [found[c].verdict for c in ("whole card", "cores", "memory", "name")] == ["disagree"] * 4


@pytest.mark.parametrize(
    ("file", "text", "check", "words"),
    [
        ("bus/pci/devices/0000:62:00.0/vendor", "0x1002", "PCI id", "vendor 0x1002"),
        ("bus/pci/devices/0000:62:00.0/device", "0x2684", "model", "a 4090"),
        ("bus/pci/devices/0000:62:00.0/max_link_width", "8", "link", "x8"),
        ("bus/pci/devices/0000:62:00.0/numa_node", "7", "NUMA", "node 7"),
    ],
)
def test_the_bus_is_a_witness(roots: Roots, file: str, text: str, check: str, words: str) -> None:
    (roots.sys / file).write_text(text)
    found = judged(roots)[check]
    assert (found.verdict, words in found.reason) == ("disagree", True), found


def test_a_card_that_the_kernel_does_not_list_is_told(roots: Roots) -> None:
    elsewhere = replace(NVML, pci_bus_id="00000000:63:00.0")
    assert judged(roots, nvml=elsewhere)["listed"].verdict == "disagree"
    assert "listed" not in judged(roots)


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [
        (PLAIN, "proc"),
        (CONTAINER, "proc"),
        (CONTAINER + "42 41 0:91 / /proc/driver/nvidia/gpus/0000:62:00.0 rw - tmpfs none rw\n", "tmpfs"),
        (PLAIN + "42 22 0:91 /kit/i /proc/driver/nvidia/gpus/0000:62:00.0/information rw - ext4 /dev/vda rw\n", "ext4"),
        (CONTAINER + "43 22 0:92 / /proc/driver rw - overlay overlay rw\n", "overlay"),  # hides what lies below it
        (CONTAINER + "44 22 0:92 / /proc/drivers\\040 rw - overlay overlay rw\n", "proc"),
        (CONTAINER.replace(" 40 0:21", " 99 0:21"), "tmpfs"),  # the card's own folder was mounted on another /proc
    ],
)
def test_what_lies_over_a_file_is_found_as_the_kernel_finds_it(mounts: str, kind: str, roots: Roots) -> None:
    found = mount_of(FILE, mounts)
    assert found is not None
    assert found.kind == kind
    (roots.proc / "self/mountinfo").write_text(mounts)
    assert judged(roots)["mount"].verdict == ("agree" if kind == "proc" else "disagree")


def test_one_cards_file_shown_as_anothers_is_told(roots: Roots) -> None:
    (roots.proc / "self/mountinfo").write_text(
        CONTAINER.replace("/gpus/0000:62:00.0 /proc", "/gpus/0000:17:00.0 /proc")
    )
    assert "0000:17:00.0" in judged(roots)["mount"].reason


def test_a_table_of_mounts_in_a_circle_ends() -> None:
    assert mount_of(FILE, "1 2 0:1 / / rw - proc proc rw\n2 1 0:1 / / rw - proc proc rw\n") is None
    assert mount_of(FILE, None) is None


@pytest.mark.parametrize(
    ("version", "release", "verdict"),
    [
        ("580.95.05", "6.8.0", "agree"),
        ("535.288.01", "6.8.0", "agree"),
        ("418.181.07", "5.4.0", "agree"),  # before the rule
        ("591.86", "6.8.0", "disagree"),
        ("576.88", "6.8.0", "disagree"),
        ("591.86", "5.15.153.1-microsoft-standard-WSL2", "unknown"),
    ],
)
def test_a_driver_must_exist_for_its_system(roots: Roots, version: str, release: str, verdict: str) -> None:
    facts = replace(gpu_facts(roots, replace(NVML, driver=version), ()), system="Linux", kernel_release=release)
    assert verdicts(gpu_checks(facts))["driver of this system"] == verdict


@pytest.mark.parametrize(("claimed", "verdict"), [(2, "agree"), (4, "agree"), (176, "disagree"), (None, "agree")])
def test_more_cpus_than_the_kernel_has_are_told(roots: Roots, claimed: int | None, verdict: str) -> None:
    cpu = Device(uuid="cpu", name="EPYC", kind="cpu", selector="cpu", thread_count=claimed, sensors={})
    (check,) = cpu_checks(cpu_facts(roots, cpu))
    assert check.verdict == verdict
    (roots.proc / "cpuinfo").write_text("processor\t: 0\n" * 176)
    assert cpu_checks(cpu_facts(roots, cpu))[0].verdict == "disagree"


def test_places_on_the_bus_have_one_spelling() -> None:
    assert {bus_id("00000000:62:00.0"), bus_id("0000:62:00.0"), bus_id("62:00.0"), bus_id("62:00")} == {"0000:62:00.0"}
    assert bus_id("00010001:0A:1F.7") == "10001:0a:1f.7"
    assert (bus_id("nonsense"), bus_id(None)) == (None, None)


# Attestation


def test_evidence_is_never_more_than_unverified() -> None:
    nonce = "ab" * 32
    signed = Attestation(state="unverified", nonce=nonce, report="11e001ff" + nonce + "00", certificates="")
    assert attested(signed).verdict == "unknown"
    old = replace(signed, report="11e001ff" + "cd" * 32)
    assert "another nonce" in attested(old).reason
    assert attested(old).verdict == "disagree"
    assert attested(Attestation(state="unavailable", nonce=nonce, reason="no")).verdict == "unknown"


def asked() -> Json:
    return [
        {uuid: list(more) for uuid, more in nvml_identities().items()},
        [asdict(identity.evidence(uuid, "ab" * 32)) for uuid in (H100, RTX_4090, "GPU-none")],
    ]


def examined_in_child() -> Json:
    nowhere = Roots(Path("/nowhere"), Path("/nowhere"))
    extras = {uuid: Extra(more) for uuid, more in nvml_identities().items()}
    found = examine_with(nowhere, nvml_devices()[0], nvml_devices(), (), extras)
    return [verdicts(one.checks) for one in found[1:]]


@pytest.fixture(scope="module")
def tell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    with child(build(tmp_path_factory.mktemp("fakenvml")), __file__) as run:
        yield run


def test_nvml_tells_what_else_it_knows_and_signs_over_a_nonce(tell: Child) -> None:
    more, (hopper, ada, none) = tell(asked)
    assert more[H100] == [0x233010DE, 132 * 128, 0]
    assert (hopper["state"], hopper["certificates"]) == ("unverified", b"-----BEGIN".hex())
    assert "ab" * 32 in hopper["report"]
    assert (ada["state"], ada["report"]) == ("unavailable", None)
    assert "no GPU of this uuid" in none["reason"]
    silent, _ = tell(asked, "nvmlDeviceGetNumGpuCores=3 nvmlDeviceGetVirtualizationMode=3 1.lost=1")
    assert silent == {H100: [0x233010DE, None, None]}


def test_a_name_alone_confirms_nothing(tell: Child) -> None:
    hopper, _ = tell(examined_in_child)
    assert {name for name, verdict in hopper.items() if verdict == "agree"} == {"driver of this system", "whole card"}


# One card, two providers


def report(node: str, key: str | None, *uuids: str) -> Report:
    seal = Seal(outcomes=(), digest="", algorithm="ed25519" if key else "unsigned", public_key=key, signature=None)
    environment = Environment(
        harness_version="0",
        python="3",
        os="Linux",
        packages={},
        cpu_limit_count=None,
        niceness=None,
        load_average_1min=None,
        memory_free_bytes=None,
        governor=None,
    )
    return Report(
        schema="harness.report/2",
        node=Node(name=node),
        environment=environment,
        preset="quick",
        seed="00",
        created_at="",
        sealed_at="",
        emulated=False,
        devices=tuple(replace(NVML, uuid=uuid) for uuid in uuids),
        preflight=(),
        plan=(),
        outcomes=(),
        previous=None,
        seal=seal,
    )


def test_one_card_of_two_providers_fails_both() -> None:
    other = UUID.replace("9", "8")
    mine, again, theirs = (
        report("a", "11" * 32, UUID, other),
        report("b", "11" * 32, UUID),
        report("c", "22" * 32, UUID),
    )
    assert duplicates([mine, again]) == ()  # one provider's later report
    (found,) = duplicates([mine, again, theirs])
    assert (found.uuid, found.claimants) == (UUID.lower(), ("11" * 32, "22" * 32))
    emulated = replace(theirs, devices=(replace(NVML, emulated=True),))
    assert duplicates([mine, emulated]) == ()


# The command


def test_the_command_names_what_disagrees_and_fails(monkeypatch: pytest.MonkeyPatch, roots: Roots) -> None:
    lied = replace(NVML, driver="591.86")

    def examine(nonce: str | None) -> tuple[Examined, ...]:
        cpu = Device(uuid="cpu", name="EPYC", kind="cpu", selector="cpu", thread_count=2, sensors={})
        return examine_with(roots, cpu, (lied,), (CUDA,), {UUID: Extra(MORE)})

    monkeypatch.setattr(identity, "examine", examine)
    told = CliRunner().invoke(devices_command, ["--check"])
    assert told.exit_code == 1
    assert "number of Windows drivers" in told.stdout
    spelled = json.loads(CliRunner().invoke(devices_command, ["--check", "--json"]).stdout)
    assert [one["device"]["selector"] for one in spelled] == ["cpu", "cuda:0"]


if __name__ == "__main__":
    answer_requests(globals())
