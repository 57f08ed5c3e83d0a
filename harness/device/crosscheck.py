"""Is a device what it says it is? What NVML, CUDA, the driver's files in /proc and the PCI bus in /sys say of it, held against each other.

Each check ends in `agree`, `disagree` or `unknown`, with what every side said. Pure: it judges facts that `witnesses` collected.

Found: a faked or replaced NVML that forgot another view, files laid over the driver's, a driver version of another system, a slice sold as
a whole card, a card under another's name, a power cap, a CPU count that the kernel does not have, one card in the reports of two providers.
Not found: a machine whose root user falsified every view alike. No name is worth a price: what a card delivers is proven in `harness.proof`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise

from harness.device.facts import Attestation, Check, CpuFacts, Duplicate, GpuFacts, PciFacts
from harness.model import Device, Report

__all__ = ["attested", "bus_id", "cpu_checks", "duplicates", "gpu_checks"]

_POWER_LEAST_FRACTION = 0.9
_MEMORY_LEAST_FRACTION = 0.9  # CUDA leaves out what the driver and ECC keep for themselves
_NVIDIA = 0x10DE
_VGPU = 2  # NVML_GPU_VIRTUALIZATION_MODE_VGPU: a part of a card, given to a virtual machine
_GENERATIONS = {"2.5": 1, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}  # by GT/s

# FP32 lanes of a multiprocessor, which is what NVML counts as cores; by compute capability.
_CORES_PER_SM = {
    "7.0": 64,
    "7.5": 64,
    "8.0": 64,
    "8.6": 128,
    "8.9": 128,
    "9.0": 128,
    "10.0": 128,
    "10.3": 128,
    "12.0": 128,
}

# Words that the name of a PCI device id must hold: the public list pci.ids, in part.
_MODELS: Mapping[int, str] = {
    0x1EB8: "T4", 0x20B2: "A100", 0x20B5: "A100", 0x2203: "3090 Ti", 0x2204: "3090", 0x2230: "A6000", 0x2231: "A5000", 0x2322: "H800",
    0x2330: "H100", 0x2331: "H100", 0x2684: "4090", 0x2685: "4090 D", 0x26B1: "6000 Ada", 0x26B9: "L40S", 0x27B8: "L4", 0x2901: "B200",
    0x2B85: "5090", 0x2B87: "5090 D", 0x2C02: "5080",
}  # fmt: skip


def gpu_checks(facts: GpuFacts) -> tuple[Check, ...]:
    """Hold the views of one GPU against each other."""
    return (
        *_identity(facts),
        _mount(facts),
        _driver(facts),
        _driver_plausible(facts),
        _pci_ids(facts),
        _model(facts),
        _memory(facts),
        _cores(facts),
        _slice(facts),
        _power(facts.nvml),
        _link(facts),
        _numa(facts),
    )


def _alike(name: str, said: Mapping[str, str | None], alike: Callable[[str, str], bool] = str.__eq__) -> Check:
    """Agree where all who said something said the same, and at least two did."""
    told = [value for value in said.values() if value is not None]
    if len(told) < 2:  # noqa: PLR2004 - a witness alone confirms nothing
        return Check(name=name, verdict="unknown", said=said, reason="fewer than two sides can be asked")
    if all(alike(a, b) for a, b in pairwise(told)):
        return Check(name=name, verdict="agree", said=said)
    words = ", ".join(f"{side} says {value!r}" for side, value in said.items() if value is not None)
    return Check(name=name, verdict="disagree", said=said, reason=words)


def _identity(facts: GpuFacts) -> Iterator[Check]:
    nvml, cuda, proc = facts.nvml, facts.cuda, facts.proc or {}
    if facts.proc == {}:
        said = {"NVML": nvml.pci_bus_id, "/proc": None}
        yield Check(
            name="listed", verdict="disagree", said=said, reason="the driver's files list other GPUs, not this one"
        )
    yield _alike(
        "uuid",
        {"NVML": _uuid(nvml.uuid), "CUDA": _uuid(cuda.uuid) if cuda else None, "/proc": _uuid(proc.get("GPU UUID"))},
    )
    yield _alike("name", {"NVML": nvml.name, "CUDA": cuda.name if cuda else None, "/proc": _known(proc.get("Model"))})
    yield _alike(
        "bus",
        {
            "NVML": bus_id(nvml.pci_bus_id),
            "CUDA": bus_id(cuda.pci_bus_id) if cuda else None,
            "/proc": bus_id(proc.get("Bus Location")),
        },
    )
    yield _alike("vbios", {"NVML": _lower(nvml.vbios), "/proc": _lower(_known(proc.get("Video BIOS")))})
    yield _alike(
        "compute capability", {"NVML": nvml.compute_capability, "CUDA": cuda.compute_capability if cuda else None}
    )


def _known(text: str | None) -> str | None:
    return None if text is None or "?" in text or text in {"", "Unknown", "N/A"} else text


def _lower(text: str | None) -> str | None:
    return text.lower() if text else None


def _uuid(text: str | None) -> str | None:
    return text.lower() if text and re.fullmatch(r"gpu-[0-9a-f-]{36}", text.lower()) else None


def bus_id(text: str | None) -> str | None:
    """Return a PCI address in the kernel's spelling, `0000:17:00.0`; None for what is none."""
    found = re.fullmatch(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})(?:\.([0-7]))?", (text or "").lower())
    if not found:
        return None
    domain, bus, slot, function = found.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{slot}.{function or '0'}"


def _mount(facts: GpuFacts) -> Check:
    """A file system of another type over the driver's files, or another card's file, is a forgery that costs one command.

    NVIDIA's own container runtime lays a tmpfs over /proc/driver/nvidia, too, but binds the real file of each card into it.
    """
    if not facts.proc or facts.mount is None:
        reason = (
            "there is no file of the driver to look at" if not facts.proc else "/proc/self/mountinfo cannot be read"
        )
        return Check(name="mount", verdict="unknown", said={}, reason=reason)
    kind, root = facts.mount.kind, facts.mount.root
    said = {"file system": kind, "shows": root}
    if kind != "proc":
        reason = f"a {kind} lies over the driver's own file: anybody could have written what it says"
        return Check(name="mount", verdict="disagree", said=said, reason=reason)
    shown = next(filter(None, map(bus_id, root.split("/"))), None)
    if shown is not None and shown != bus_id(facts.nvml.pci_bus_id):
        reason = f"the file of the card at {shown} is shown as that of {facts.nvml.pci_bus_id}"
        return Check(name="mount", verdict="disagree", said=said, reason=reason)
    return Check(name="mount", verdict="agree", said=said)


def _driver(facts: GpuFacts) -> Check:
    return _alike("driver", {"NVML": facts.nvml.driver, "kernel module": facts.module_driver})


def _driver_plausible(facts: GpuFacts) -> Check:
    """A driver of Linux bears the number of its branch, which since 430 is a multiple of five; Windows counts on from there: 591.86."""
    name, version = "driver of this system", facts.nvml.driver
    said = {"NVML": version, "system": facts.system}
    found = re.match(r"(\d{3})\.", version or "")
    if not found or facts.system != "Linux":
        return Check(name=name, verdict="unknown", said=said, reason="no driver of Linux to judge")
    if "microsoft" in facts.kernel_release.lower():
        return Check(name=name, verdict="unknown", said=said, reason="WSL shows the driver of Windows")
    branch = int(found[1])
    if branch >= 430 and branch % 5:  # noqa: PLR2004 - above
        reason = f"there is no driver {version} for Linux: {branch} is a number of Windows drivers"
        return Check(name=name, verdict="disagree", said=said, reason=reason)
    return Check(name=name, verdict="agree", said=said)


def _pci_ids(facts: GpuFacts) -> Check:
    pci, told = facts.pci, facts.pci_device_id
    bus = None if pci is None or pci.vendor_id is None or pci.device_id is None else (pci.vendor_id, pci.device_id)
    by_nvml = None if told is None else (told & 0xFFFF, told >> 16)
    check = _alike("PCI id", {"NVML": _pair(by_nvml), "/sys": _pair(bus)})
    if bus is not None and bus[0] != _NVIDIA:
        reason = f"the device at {facts.nvml.pci_bus_id} is of vendor {bus[0]:#06x}, not NVIDIA's {_NVIDIA:#06x}"
        return Check(name=check.name, verdict="disagree", said=check.said, reason=reason)
    return check


def _pair(ids: tuple[int, int] | None) -> str | None:
    return None if ids is None else "{:04x}:{:04x}".format(*ids)


def _model(facts: GpuFacts) -> Check:
    device_id = facts.pci.device_id if facts.pci else None
    word = _MODELS.get(device_id or 0)
    said = {
        "NVML": facts.nvml.name,
        "/sys": None if device_id is None else f"{device_id:04x}" + (f", {word}" if word else ""),
    }
    if word is None:
        return Check(name="model", verdict="unknown", said=said, reason="no known name for this PCI id")
    if re.search(rf"\b{re.escape(word)}\b", facts.nvml.name, re.IGNORECASE):
        return Check(name="model", verdict="agree", said=said)
    reason = f"the bus has a device {device_id:04x}, which is a {word}, NVML calls it {facts.nvml.name!r}"
    return Check(name="model", verdict="disagree", said=said, reason=reason)


def _memory(facts: GpuFacts) -> Check:
    whole, usable = facts.nvml.memory_bytes, facts.cuda.memory_bytes if facts.cuda else None
    said = {"NVML": _text(whole), "CUDA": _text(usable)}
    if whole is None or usable is None:
        return Check(name="memory", verdict="unknown", said=said, reason="fewer than two sides can be asked")
    if _MEMORY_LEAST_FRACTION * whole <= usable <= whole:
        return Check(name="memory", verdict="agree", said=said)
    reason = f"CUDA has {usable / 2**30:.1f} GiB of the {whole / 2**30:.1f} that NVML names"
    return Check(name="memory", verdict="disagree", said=said, reason=reason)


def _text(number: float | None) -> str | None:
    return None if number is None else f"{number}"


def _cores(facts: GpuFacts) -> Check:
    """NVML counts lanes, CUDA multiprocessors: by the compute capability one follows from the other."""
    per_sm = _CORES_PER_SM.get(facts.nvml.compute_capability or "")
    units = facts.cuda.sm_count if facts.cuda else None
    said = {"NVML": _text(facts.core_count), "CUDA": None if units is None else f"{units} multiprocessors"}
    if facts.core_count is None or units is None or per_sm is None:
        return Check(name="cores", verdict="unknown", said=said, reason="fewer than two sides can be asked")
    if facts.core_count == units * per_sm:
        return Check(name="cores", verdict="agree", said=said)
    reason = f"{units} multiprocessors of {per_sm} are {units * per_sm} cores, NVML says {facts.core_count}"
    return Check(name="cores", verdict="disagree", said=said, reason=reason)


def _slice(facts: GpuFacts) -> Check:
    """A whole card has MIG off, is no vGPU, and CUDA does not call it an instance."""
    mig, mode = facts.nvml.mig_enabled, facts.virtualization_mode
    name = facts.cuda.name if facts.cuda else None
    said = {"MIG": None if mig is None else "on" if mig else "off", "virtualization": _text(mode), "CUDA": name}
    found = [
        *(["MIG is on"] if mig else []),
        *(["it is a vGPU"] if mode == _VGPU else []),
        *([f"CUDA calls it {name!r}"] if name and re.search(r"\bMIG\b", name) else []),
    ]
    if found:
        return Check(
            name="whole card", verdict="disagree", said=said, reason="a slice, not the card: " + ", ".join(found)
        )
    if mig is None and mode is None:  # GeForce has no MIG and says so by not answering
        return Check(name="whole card", verdict="unknown", said=said, reason="NVML tells neither")
    return Check(name="whole card", verdict="agree", said=said)


def _power(device: Device) -> Check:
    limit, default = device.power_limit_w, device.power_default_limit_w
    said = {"limit": _text(limit), "default": _text(default)}
    if limit is None or default is None:
        return Check(name="power limit", verdict="unknown", said=said, reason="NVML tells no limit")
    if limit >= _POWER_LEAST_FRACTION * default:
        return Check(name="power limit", verdict="agree", said=said)
    reason = f"capped to {limit:.0f} of {default:.0f} W, below {_POWER_LEAST_FRACTION:.0%}"
    return Check(name="power limit", verdict="disagree", said=said, reason=reason)


def _link(facts: GpuFacts) -> Check:
    """NVML's maximum is that of card and slot together, so it may be below the card's own, never above."""
    pci = facts.pci or PciFacts()
    generation = _GENERATIONS.get((pci.link_speed_max or "").split(" ", 1)[0])
    lanes = (
        pci.link_width_max if pci.link_width_max in {1, 2, 4, 8, 12, 16, 32} else None
    )  # a virtual bus says 0 or 255
    told = (facts.nvml.pcie_generation_max, facts.nvml.pcie_width_max)
    said = {"NVML": "generation {}, x{}".format(*told), "/sys": f"generation {generation}, x{lanes}"}
    pairs = [(a, b) for a, b in zip(told, (generation, lanes), strict=True) if a is not None and b is not None]
    if not pairs:
        return Check(name="link", verdict="unknown", said=said, reason="fewer than two sides can be asked")
    if all(by_nvml <= by_bus for by_nvml, by_bus in pairs):
        return Check(name="link", verdict="agree", said=said)
    reason = f"NVML claims {said['NVML']}, the bus gives {said['/sys']} at most"
    return Check(name="link", verdict="disagree", said=said, reason=reason)


def _numa(facts: GpuFacts) -> Check:
    node = facts.pci.numa_node if facts.pci else None
    nodes = facts.numa_nodes
    said = {"device": _text(node), "node": None if nodes is None else ",".join(map(str, sorted(nodes)))}
    if node is None or nodes is None:
        return Check(name="NUMA", verdict="unknown", said=said, reason="the firmware does not say where the device is")
    if node in nodes:
        return Check(name="NUMA", verdict="agree", said=said)
    reason = f"the device is at NUMA node {node}, which this machine does not have"
    return Check(name="NUMA", verdict="disagree", said=said, reason=reason)


def cpu_checks(facts: CpuFacts) -> tuple[Check, ...]:
    """Hold the count of CPUs that is claimed against what the kernel has. A container may show fewer, never more."""
    said = {
        "process": _text(facts.claimed_count),
        "/proc/cpuinfo": _text(facts.listed_count),
        "/sys": _text(facts.present_count),
        "/proc/cpuinfo is": facts.mount.kind if facts.mount else None,
    }
    claims = [count for count in (facts.claimed_count, facts.listed_count) if count is not None]
    if not claims or facts.present_count is None:
        return (Check(name="CPU count", verdict="unknown", said=said, reason="fewer than two sides can be asked"),)
    if max(claims) > facts.present_count:
        reason = f"{max(claims)} CPUs are claimed, the kernel has {facts.present_count}"
        return (Check(name="CPU count", verdict="disagree", said=said, reason=reason),)
    if facts.mount and facts.mount.kind not in {"proc", "fuse.lxcfs"}:
        reason = f"a {facts.mount.kind} lies over /proc/cpuinfo: anybody could have written what it says"
        return (Check(name="CPU count", verdict="disagree", said=said, reason=reason),)
    return (Check(name="CPU count", verdict="agree", said=said),)


def attested(evidence: Attestation) -> Check:
    """Say of attestation evidence what can be said offline: whether it is for this nonce. Never that it is good."""
    said = {"nonce": evidence.nonce, "state": evidence.state}
    if evidence.state == "unavailable" or evidence.report is None:
        return Check(name="attestation", verdict="unknown", said=said, reason=evidence.reason)
    if evidence.nonce not in evidence.report:  # the report begins with the request that it answers, nonce and all
        reason = "the report answers another nonce: it is old, or another's"
        return Check(name="attestation", verdict="disagree", said=said, reason=reason)
    return Check(
        name="attestation", verdict="unknown", said=said, reason="collected, not verified: no chain was checked"
    )


def duplicates(reports: Iterable[Report]) -> tuple[Duplicate, ...]:
    """Find the cards that more than one provider reports as its own. A provider is its key, or its name where it does not sign."""
    seen: dict[str, set[str]] = {}
    for report in reports:
        provider = report.seal.public_key or f"unsigned {report.node.name!r}"
        for device in report.devices:
            uuid = _uuid(device.uuid)
            if device.kind == "cuda" and not device.emulated and uuid is not None:
                seen.setdefault(uuid, set()).add(provider)
    return tuple(
        Duplicate(uuid=uuid, claimants=tuple(sorted(who))) for uuid, who in sorted(seen.items()) if len(who) > 1
    )
