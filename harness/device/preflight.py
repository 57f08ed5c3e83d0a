"""What about a device or its node would make results worse or unsafe: each thing with its value and what would mend it.

Found: what the sensors, the driver and the kernel admit. Not found: a machine that lies, and load outside this node.
A value that nobody could read gives no note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from harness.device.sensors import GpuProcess, compute_processes
from harness.model import Device, Environment, Note, TelemetrySample

__all__ = ["MEMORY_BYTES", "by_topic", "neighbours", "objections"]

_BUSY_FRACTION = 0.5  # an idle link drops to generation 1, so it is judged under load only
_LOAD_FRACTION = 0.5
MEMORY_BYTES = 4 << 30
_GRAVITY = ("refuse", "tag", "info")


def neighbours(device: Device) -> tuple[GpuProcess, ...] | None:
    """Return the other processes that compute on a GPU now; None where nobody knows, or it is no GPU."""
    return compute_processes(device.uuid) if device.kind == "cuda" and not device.emulated else None


def objections(
    device: Device,
    samples: Sequence[TelemetrySample] = (),
    *,
    processes: Sequence[GpuProcess] | None = None,
    environment: Environment | None = None,
) -> tuple[Note, ...]:
    """Return what speaks against measuring, the gravest first.

    Args:
        device: what it says of itself.
        samples: its telemetry, of before or during a run.
        processes: its `neighbours`.
        environment: of its node.
    """
    topics = by_topic(device, samples, processes=processes, environment=environment)
    notes = [note for found in topics.values() for note in found]
    return tuple(sorted(notes, key=lambda note: _GRAVITY.index(note.severity)))


def by_topic(
    device: Device,
    samples: Sequence[TelemetrySample] = (),
    *,
    processes: Sequence[GpuProcess] | None = None,
    environment: Environment | None = None,
) -> Mapping[str, tuple[Note, ...]]:
    """Return the same by what it is about: modes, power, memory, link, company and host, whether there is anything to say or not."""
    return {
        "modes": tuple(_modes(device)),
        "power": tuple(_power(device)),
        "memory": tuple(_memory(device, samples)),
        "link": tuple(_link(device, samples)),
        "company": tuple(_company(processes or ())),
        "host": tuple(_host(environment)) if environment else (),
    }


def _modes(device: Device) -> Iterator[Note]:
    smi = f"`nvidia-smi -i {device.uuid}"
    if device.compute_mode == "prohibited":
        what = "compute mode prohibited: no process may compute on it"
        yield Note(severity="refuse", what=what, advice=f"{smi} -c DEFAULT`, as root")
    elif device.compute_mode not in {None, "default"}:
        what = f"compute mode {device.compute_mode}: a second process is turned away"
        yield Note(severity="tag", what=what, advice=f"{smi} -c DEFAULT`, as root")
    if device.mig_enabled:
        what = "MIG on: only a slice of the card can be measured"
        yield Note(severity="tag", what=what, advice=f"{smi} -mig 0`, as root and while nothing runs on it")
    if device.display_active:
        what = "a display is active: drawing takes memory and time"
        yield Note(severity="tag", what=what, advice="end the desktop session, or plug the display in elsewhere")
    if device.persistence_mode is False:
        what = "persistence mode off: the driver may forget the card's settings between processes"
        yield Note(severity="info", what=what, advice=f"{smi} -pm 1`, as root")


def _power(device: Device) -> Iterator[Note]:
    limit_w, default_w = device.power_limit_w, device.power_default_limit_w
    if limit_w is not None and default_w is not None and limit_w < default_w:
        what = f"power limit {limit_w:.0f} of {default_w:.0f} W"
        advice = f"`nvidia-smi -i {device.uuid} -pl {default_w:.0f}`, as root, if the node's power and cooling allow it"
        yield Note(severity="tag", what=what, advice=advice)


def _memory(device: Device, samples: Sequence[TelemetrySample]) -> Iterator[Note]:
    reset = "drain the card and reset it: `nvidia-smi --gpu-reset`"
    errors = max((s.ecc_uncorrected_count for s in samples if s.ecc_uncorrected_count is not None), default=0)
    if errors:
        what = f"{errors} uncorrected memory errors since the driver was loaded"
        yield Note(severity="refuse", what=what, advice=f"{reset}; if they come back, replace it")
    if device.remapping_failed:
        what = "a faulty row of memory could not be replaced"
        yield Note(severity="refuse", what=what, advice="replace the card")
    if device.remapping_pending:
        yield Note(severity="tag", what="a faulty row of memory waits to be replaced", advice=reset)
    if device.remapped_uncorrected_count:
        what = f"{device.remapped_uncorrected_count} rows of memory were replaced after uncorrectable errors"
        yield Note(severity="info", what=what, advice="watch whether they grow in number")
    if device.ecc_enabled is False:
        what = "ECC off: the card does not notice a wrong bit in its memory"
        yield Note(severity="info", what=what, advice=f"`nvidia-smi -i {device.uuid} -e 1`, as root, and a restart")


def _link(device: Device, samples: Sequence[TelemetrySample]) -> Iterator[Note]:
    loaded = [s for s in samples if (s.utilization_fraction or 0) > _BUSY_FRACTION]
    width = max((s.pcie_width for s in loaded if s.pcie_width is not None), default=None)
    if width is not None and device.pcie_width_max is not None and width < device.pcie_width_max:
        what = f"PCIe x{width} of x{device.pcie_width_max}"
        yield Note(severity="tag", what=what, advice="another slot, a better riser, or fewer cards on the same lanes")
    speed = max((s.pcie_generation for s in loaded if s.pcie_generation is not None), default=None)
    if speed is not None and device.pcie_generation_max is not None and speed < device.pcie_generation_max:
        what = f"PCIe generation {speed} of {device.pcie_generation_max} under load"
        yield Note(severity="tag", what=what, advice="the firmware's setting of the slot's speed, or a better riser")


def _company(processes: Sequence[GpuProcess]) -> Iterator[Note]:
    if not processes:
        return
    held = [p.memory_bytes for p in processes if p.memory_bytes is not None]
    hold = f", holding {sum(held) / 1e9:.1f} GB" if held else ""
    noun = "process" if len(processes) == 1 else "processes"
    what = f"{len(processes)} other compute {noun} on the GPU{hold}"
    pids = ", ".join(str(p.pid) for p in processes)
    yield Note(severity="tag", what=what, advice=f"end them: process {pids}")


def _host(environment: Environment) -> Iterator[Note]:
    if environment.governor not in {None, "performance"}:
        what = f"CPU governor {environment.governor}"
        yield Note(severity="tag", what=what, advice="`cpupower frequency-set -g performance`, as root")
    load, cpus = environment.load_average_1min, environment.cpu_limit_count
    if load is not None and cpus is not None and load > _LOAD_FRACTION * cpus:
        yield Note(severity="tag", what=f"load average {load:.1f} on {cpus} CPUs", advice="end what else runs here")
    free = environment.memory_free_bytes
    if free is not None and free < MEMORY_BYTES:
        what = f"{free / 1e9:.1f} GB of memory free"
        yield Note(severity="tag", what=what, advice=f"have {MEMORY_BYTES / 1e9:.1f} GB free: operands are made there")
