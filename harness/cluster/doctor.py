"""What a machine can measure, what it cannot, and what would mend it: pure checks over what was seen of it.

Found: what the driver, the kernel and the installed packages admit. Not found: a machine that lies; what shows under load only, which a
run tells (`harness.device.preflight`). A value that nobody could read is said to be unknown, with the reason, and held against nobody.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.device.preflight import MEMORY_BYTES, by_topic
from harness.device.sensors import GpuProcess
from harness.model import Device, Environment, Note, TelemetrySample

__all__ = ["Finding", "GpuView", "State", "Status", "diagnose"]

Status = Literal["ok", "unknown", "warning", "cannot"]

_DISK_BYTES = 1 << 30
_SLOW_CLOCKS = frozenset({"acpi_pm", "hpet", "jiffies", "pit", "refined-jiffies"})
_WHEELS = {
    "cupy-cuda13x": ("13", 580),
    "cupy-cuda12x": ("12", 525),
}  # CUDA's major version, and the least driver for it
_NEWEST_DRIVER = 580  # from which on the wheels of CUDA 13 run
_HEAT = {"hw_slowdown", "hw_thermal", "sw_thermal", "hw_power_brake"}
_RUN_HERE = "run `harness run` on a machine with an NVIDIA GPU, or send jobs to one: `harness run --ray HOST:PORT`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    subject: str  # machine, ray, cpu, cuda:0 ...
    topic: str
    status: Status
    what: str
    advice: str = ""  # the command that mends it
    blocks: bool = False  # something that is there cannot be measured because of it


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuView:
    """A GPU as its driver shows it at rest."""

    device: Device
    sample: TelemetrySample | None = None
    processes: tuple[GpuProcess, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What was seen of a machine. What could not be seen is None; what went wrong is told in words."""

    broken: str | None = None  # why nothing could be looked at: the process that looks crashed or hung
    cpu: Device | None = None
    gpus: tuple[GpuView, ...] = ()
    environment: Environment | None = None
    gpus_on_bus: tuple[str, ...] | None = None  # PCI addresses of NVIDIA's display controllers
    driver: str | None = None  # the kernel module's version
    nvml_reason: str | None = None  # why NVML does not answer
    cuda_reason: str | None = None  # why CUDA cannot be used
    packages: Mapping[str, str]
    ray_port_open: bool | None = None  # somebody listens at 6379
    cpu_quota: float | None = None  # CPUs that the control group grants; None for all
    clock_source: str | None = None
    results_folder: str = "results"
    results_trouble: str | None = None  # why reports cannot be written there
    disk_free_bytes: int | None = None


def diagnose(state: State) -> tuple[Finding, ...]:
    """Return what there is to say of a machine: the machine first, then each device."""
    found = [*_software(state), *_machine(state), *_cpu(state)]
    for view in state.gpus:
        found += _gpu(view, state)
    return tuple(found)


# --- driver and libraries ---------------------------------------------------------------------------------------------


def _software(state: State) -> Iterator[Finding]:
    if state.broken:
        advice = "see what hangs or crashes: `harness devices`, `nvidia-smi`, `dmesg | tail`"
        yield _say("machine", "devices", "cannot", state.broken, advice, blocks=True)
    yield _driver(state)
    yield _wheels(state)
    ray = state.packages.get("ray")
    if ray is None:
        yield _say("machine", "ray", "warning", "Ray is not installed: no fleet", "`uv sync`, or `pip install 'ray[default]>=2.60,<2.61'`")  # fmt: skip
    else:
        port = {True: "something listens at 127.0.0.1:6379", False: "no head at 127.0.0.1:6379", None: "port unknown"}
        yield _say("machine", "ray", "ok", f"Ray {ray}; {port[state.ray_port_open]}; head and nodes need one version")


def _driver(state: State) -> Finding:
    version = _driver_of(state)
    if version is not None and state.nvml_reason is None:
        return _say("machine", "driver", "ok", f"NVIDIA driver {version}")
    if any(view.device.emulated for view in state.gpus):
        return _say("machine", "driver", "unknown", "no NVIDIA driver; CUDA is emulated")
    if version is None and not state.gpus_on_bus and not state.gpus:
        known = "no NVIDIA GPU on the PCI bus" if state.gpus_on_bus is not None else "no NVIDIA driver"
        return _say("machine", "driver", "cannot", f"{known}: only the CPU can be measured", _RUN_HERE)
    count = len(state.gpus_on_bus or state.gpus)
    there = f"{count} NVIDIA GPU{'s' if count > 1 else ''} on the PCI bus, but " if state.gpus_on_bus else ""
    advice = f"install NVIDIA's driver, {_NEWEST_DRIVER} or newer, then `nvidia-smi`; in a container: `docker run --gpus all`"
    if version is not None:
        advice = (
            "`nvidia-smi` says more; `ls -l /dev/nvidia*` shows who may use it; in a container: `docker run --gpus all`"
        )
    # CUDA alone can measure, without sensors.
    blocks = not any(view.device.unusable_reason is None for view in state.gpus)
    return _say("machine", "driver", "cannot", there + (state.nvml_reason or "no NVIDIA driver"), advice, blocks=blocks)


def _driver_of(state: State) -> str | None:
    return state.driver or next((v.device.driver for v in state.gpus if v.device.driver), None)


def _wheels(state: State) -> Finding:
    installed = [name for name in _WHEELS if name in state.packages]
    driver = _major(_driver_of(state))
    extra = "cuda12" if driver is not None and driver < _NEWEST_DRIVER else "cuda13"
    install = f"`uv sync --extra {extra}`, or `pip install 'gpu-assay[{extra}]'`"
    there = bool(state.gpus or state.gpus_on_bus)
    if not installed:
        what = "CuPy is not installed: no GPU can be measured"
        return _say("machine", "CUDA wheels", "cannot", what, install, blocks=there)
    if len(installed) > 1:
        what = f"{' and '.join(installed)} are installed together, which break each other"
        return _say("machine", "CUDA wheels", "cannot", what, f"`pip uninstall {installed[1]}`", blocks=there)
    (name,) = installed
    cuda, least = _WHEELS[name]
    told = f"{name} {state.packages[name]}, numba-cuda {state.packages.get('numba-cuda', 'missing')}"
    if driver is not None and driver < least:
        what = f"{told} needs a driver of {least} or newer; this is {_driver_of(state)}"
        return _say("machine", "CUDA wheels", "cannot", what, f"update the driver, or {install}", blocks=there)
    if "numba-cuda" not in state.packages:
        what = f"{told}: most kernels cannot be compiled"
        return _say("machine", "CUDA wheels", "cannot", what, install, blocks=there)
    if state.cuda_reason:
        advice = "`nvidia-smi`; in a container: `docker run --gpus all`; check CUDA_VISIBLE_DEVICES"
        return _say("machine", "CUDA wheels", "cannot", f"{told}: {state.cuda_reason}", advice, blocks=there)
    return _say("machine", "CUDA wheels", "ok", f"{told}, for CUDA {cuda}")


def _major(version: str | None) -> int | None:
    found = re.match(r"\d+", version or "")
    return int(found[0]) if found else None


# --- the node ---------------------------------------------------------------------------------------------------------


def _machine(state: State) -> Iterator[Finding]:
    yield _memory(state.environment)
    yield _cpus(state)
    yield _governor(state.environment)
    yield _load(state.environment)
    yield _clock(state.clock_source)
    yield _disk(state)


def _memory(environment: Environment | None) -> Finding:
    free = environment.memory_free_bytes if environment else None
    if free is None:
        return _say("machine", "memory", "unknown", "/proc/meminfo does not say how much is free")
    if free < MEMORY_BYTES:
        what = f"{free / 1e9:.1f} GB of memory free, of {MEMORY_BYTES / 1e9:.1f} wanted: operands are made there"
        return _say("machine", "memory", "warning", what, "end what else runs here: `ps aux --sort=-rss | head`")
    return _say("machine", "memory", "ok", f"{free / 1e9:.1f} GB free")


def _cpus(state: State) -> Finding:
    usable = state.environment.cpu_limit_count if state.environment else None
    if usable is None:
        return _say("machine", "CPUs", "unknown", "nobody says how many CPUs this process may use")
    if state.cpu_quota is not None and state.cpu_quota < usable:
        what = f"the control group grants {state.cpu_quota:g} of {usable} CPUs: it will stop threads in the middle of a round"
        return _say(
            "machine", "CPUs", "warning", what, "`docker update --cpus 0 CONTAINER`, or no CPU limit in Kubernetes"
        )
    return _say("machine", "CPUs", "ok", f"{usable} usable, no quota")


def _governor(environment: Environment | None) -> Finding:
    governor = environment.governor if environment else None
    if governor is None:
        return _say("machine", "governor", "unknown", "the kernel shows no CPU governor, as in most virtual machines")
    if governor != "performance":
        return _say("machine", "governor", "warning", f"CPU governor {governor}", "`cpupower frequency-set -g performance`, as root")  # fmt: skip
    return _say("machine", "governor", "ok", "CPU governor performance")


def _load(environment: Environment | None) -> Finding:
    load = environment.load_average_1min if environment else None
    if environment is None or load is None:
        return _say("machine", "load", "unknown", "the kernel tells no load average")
    cpus = environment.cpu_limit_count
    if cpus is not None and load > cpus / 2:
        return _say(
            "machine", "load", "warning", f"load average {load:.1f} on {cpus} CPUs", "end what else runs here: `top`"
        )
    return _say("machine", "load", "ok", f"load average {load:.1f}")


def _clock(source: str | None) -> Finding:
    if source is None:
        return _say("machine", "clock", "unknown", "the kernel does not name its clock source")
    if source in _SLOW_CLOCKS:
        advice = "boot with `clocksource=tsc tsc=reliable`, if the processor's counter is sound"
        return _say(
            "machine", "clock", "warning", f"clock source {source}: each reading costs about a microsecond", advice
        )
    return _say("machine", "clock", "ok", f"clock source {source}")


def _disk(state: State) -> Finding:
    folder = repr(state.results_folder)
    if state.results_trouble:
        advice = "name a folder that you may write to: `harness run --out FOLDER`"
        return _say("machine", "results", "cannot", f"no report can be written to {folder}: {state.results_trouble}", advice, blocks=True)  # fmt: skip
    free = state.disk_free_bytes
    if free is None:
        return _say("machine", "results", "unknown", f"nobody says how much room {folder} has")
    if free < _DISK_BYTES:
        return _say("machine", "results", "warning", f"{free / 1e6:.0f} MB free for {folder}", "`harness run --out FOLDER` on a larger disk")  # fmt: skip
    return _say("machine", "results", "ok", f"{free / 1e9:.0f} GB free for {folder}")


# --- devices ----------------------------------------------------------------------------------------------------------


def _cpu(state: State) -> Iterator[Finding]:
    if state.cpu is None:
        if not state.broken:
            yield _say("cpu", "device", "cannot", "the CPU was not found", "", blocks=True)
        return
    yield _say("cpu", "device", "ok", f"{state.cpu.name}: can be measured")
    yield _sensors(state.cpu, "`chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj`, as root, lets it read energy")


def _gpu(view: GpuView, state: State) -> Iterator[Finding]:
    device, samples = view.device, (view.sample,) if view.sample else ()
    subject = device.selector
    if device.unusable_reason:
        advice = "see `driver` and `CUDA wheels` above" if state.nvml_reason or state.cuda_reason else "`nvidia-smi`"
        yield _say(subject, "device", "cannot", f"{device.name}: {device.unusable_reason}", advice, blocks=True)
        if view.sample is None:  # it is gone, and whatever else was told of it is of before
            return
    elif device.emulated:
        what = f"{device.name}: EMULATED, it shows that code is right; its rates mean nothing and get no price"
        yield _say(subject, "device", "warning", what, _RUN_HERE)
    else:
        yield _say(subject, "device", "ok", f"{device.name}: can be measured")
    topics = by_topic(device, samples, processes=view.processes)
    for topic, healthy in (
        ("modes", _modes(device)),
        ("power", _power(device)),
        ("memory", _rows(device)),
        ("company", _company(view)),
    ):
        yield from _noted(subject, topic, topics[topic], healthy)
    yield _link(view)
    yield _clocks(view)
    if device.sensors or not device.emulated:
        restrict = "`nvidia-smi` as root, or the container's rights: NVIDIA_DRIVER_CAPABILITIES=utility,compute"
        yield _sensors(device, restrict)


def _noted(subject: str, topic: str, notes: Sequence[Note], healthy: str | None) -> Iterator[Finding]:
    """Turn the preflight's notes into findings; without any, say what is well, or that nobody knows."""
    for note in notes:
        grave = note.severity == "refuse"
        yield _say(subject, topic, "cannot" if grave else "warning", note.what, note.advice, blocks=grave)
    if not notes:
        yield _say(subject, topic, "ok" if healthy else "unknown", healthy or "the driver does not say")


def _modes(device: Device) -> str | None:
    if device.compute_mode is None and device.persistence_mode is None:
        return None
    said = (
        f"compute mode {device.compute_mode}" if device.compute_mode else "",
        "persistence mode on" if device.persistence_mode else "",
        "MIG off" if device.mig_enabled is False else "",
    )
    return ", ".join(filter(None, said))


def _power(device: Device) -> str | None:
    if device.power_limit_w is None:
        return None
    default = f", default {device.power_default_limit_w:.0f} W" if device.power_default_limit_w is not None else ""
    return f"power limit {device.power_limit_w:.0f} W{default}"


def _rows(device: Device) -> str | None:
    said = (
        "ECC on" if device.ecc_enabled else "",
        "no rows replaced" if device.remapped_uncorrected_count == 0 else "",
    )
    return ", ".join(filter(None, said)) or None


def _company(view: GpuView) -> str | None:
    return "no other process computes on it" if view.processes == () else None


def _link(view: GpuView) -> Finding:
    sample, most = view.sample, view.device
    if sample is None or sample.pcie_width is None:
        return _say(most.selector, "link", "unknown", _why(most, "pcie_link"))
    now = f"PCIe generation {sample.pcie_generation} x{sample.pcie_width}"
    if most.pcie_width_max is not None and sample.pcie_width < most.pcie_width_max:
        advice = (
            "another slot, a better riser, or fewer cards on the same lanes: `lspci -vv` shows LnkSta beside LnkCap"
        )
        return _say(most.selector, "link", "warning", f"PCIe x{sample.pcie_width} of x{most.pcie_width_max}", advice)
    if None not in (sample.pcie_generation, most.pcie_generation_max) and (
        (sample.pcie_generation or 0) < (most.pcie_generation_max or 0)
    ):
        return _say(
            most.selector, "link", "ok", f"{now} of {most.pcie_generation_max} at rest, which a run judges under load"
        )
    return _say(most.selector, "link", "ok", now)


def _clocks(view: GpuView) -> Finding:
    device, reasons = view.device, view.sample.throttle_reasons if view.sample else None
    if reasons is None:
        return _say(device.selector, "clocks", "unknown", _why(device, "throttle_reasons"))
    held = sorted(_HEAT & set(reasons))
    if held:
        what = f"throttled at rest: {', '.join(held)}"
        return _say(device.selector, "clocks", "warning", what, "look at cooling and power supply: `nvidia-smi -q -d PERFORMANCE`")  # fmt: skip
    if "applications_clocks" in reasons:
        advice = f"`nvidia-smi -i {device.uuid} -rac` and `-rgc`, as root, unless that is what you want to measure"
        return _say(device.selector, "clocks", "warning", "its clocks are set below the default", advice)
    return _say(device.selector, "clocks", "ok", "not throttled")


def _why(device: Device, sensor: str) -> str:
    state = device.sensors.get(sensor)
    if state is None:
        return "no NVML sensors on this device"
    return f"its sensor {sensor}: {state.replace('_', ' ')}"


def _sensors(device: Device, permit: str) -> Finding:
    """Say which sensors answer; a missing one is no fault, one that is forbidden or broken can be mended."""
    groups: dict[str, list[str]] = {}
    for name, state in sorted(device.sensors.items()):
        groups.setdefault(state, []).append(name)
    said = "; ".join(
        f"{state.replace('_', ' ')}: {', '.join(groups[state])}"
        for state in ("ok", "not_supported", "no_permission", "error")
        if state in groups
    )
    if not said:
        return _say(device.selector, "sensors", "unknown", "no sensors: no power, energy, temperature or throttling")
    if groups.keys() & {"no_permission", "error"}:
        return _say(device.selector, "sensors", "warning", said, permit)
    return _say(device.selector, "sensors", "ok" if "ok" in groups else "unknown", said)


def _say(  # noqa: PLR0913 - a finding has as many parts
    subject: str, topic: str, status: Status, what: str, advice: str = "", *, blocks: bool = False
) -> Finding:
    return Finding(subject=subject, topic=topic, status=status, what=what, advice=advice, blocks=blocks)
