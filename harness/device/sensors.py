"""The door to NVML: which GPUs there are, and what their sensors say. Nothing else imports `pynvml`.

Promised: a value that NVML will not give is `None`, and the capability map says why; a broken GPU hides no other.
Not promised: that the values are true. NVML is a library on the provider's machine, and anybody can write one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple

from harness.device import gpm
from harness.device.nvml_calls import FUNCTION_NOT_FOUND, LOST, Answers, Pair, Panel, Question
from harness.device.sampler import SensorsLostError
from harness.model import Activity, ComputeMode, Device, EnergyScope, SensorState, TelemetrySample

__all__ = [
    "GpuProcess",
    "NvmlIdentity",
    "NvmlSensors",
    "attestation",
    "calibrated",
    "compute_processes",
    "nvml_devices",
    "nvml_identities",
    "nvml_status",
    "throttle_names",
]

_SELDOM = 20  # every how many samples NVML may watch the bus for 20 ms a direction; at a sample each 50 ms this is one a second

_THROTTLE_NAMES = {
    0x001: "gpu_idle",
    0x002: "applications_clocks",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal",
    0x040: "hw_thermal",
    0x080: "hw_power_brake",
    0x100: "display_clocks",
}

# Fields, which one call reads together. Their numbers, too, are NVML's ABI.
_MEMORY_TEMPERATURE = 82
_POWER_AVERAGE = 185
_POWER_INSTANT = 186
_THROTTLE_FIELDS = {"hw_power_brake": 271, "hw_thermal": 270, "sw_power_cap": 74, "sw_thermal": 269, "sync_boost": 76}
_FIELDS = (_MEMORY_TEMPERATURE, _POWER_AVERAGE, _POWER_INSTANT, *_THROTTLE_FIELDS.values())

# What a driver without those fields calls them. It has one counter for heat, by whose hand it does not say.
_POLICIES = {"sw_power_cap": 0, "sw_thermal": 1, "sync_boost": 2}

_COMPUTE_MODES: Mapping[int, ComputeMode] = {
    0: "default",
    1: "exclusive_thread",
    2: "prohibited",
    3: "exclusive_process",
}
_SLACK = 1.05  # the counters and our clock are not read at the same moment
_SUPERCHIPS = ("GH200", "GB200", "GB300")  # their module carries a Grace CPU

# NVML's clocks and counters, and its return codes. The names in pynvml are these numbers, which are part of NVML's ABI.
_SM_CLOCK, _MEMORY_CLOCK = 1, 2
_VOLATILE = 0  # errors since the driver was loaded

_INVALID_ARGUMENT = 2
_NOT_SUPPORTED = 3
_NO_PERMISSION = 4
_NOT_FOUND = 6
_DRIVER_NOT_LOADED = 9
_LIBRARY_NOT_FOUND = 12
_GPU_IS_LOST = 15
_RESET_REQUIRED = 16
_VERSION_MISMATCH = 18

# An older driver answers INVALID_ARGUMENT for a field, and lacks a function, that came after it.
_STATES: Mapping[int, SensorState] = {
    _INVALID_ARGUMENT: "not_supported",
    _NOT_SUPPORTED: "not_supported",
    FUNCTION_NOT_FOUND: "not_supported",
    _NO_PERMISSION: "no_permission",
}

_REASONS = {
    _LIBRARY_NOT_FOUND: "no NVIDIA driver: libnvidia-ml.so.1 was not found",
    _DRIVER_NOT_LOADED: "the NVIDIA driver is installed but not loaded: try `modprobe nvidia`",
    _NOT_FOUND: "NVML has no GPU of this uuid",
    _NO_PERMISSION: "no permission to talk to the NVIDIA driver: look at the owner and mode of /dev/nvidia*",
    _VERSION_MISMATCH: "the NVIDIA driver and its library have different versions: reboot, or reload the driver",
    _GPU_IS_LOST: "the GPU fell off the bus: only a reboot brings it back",
    _RESET_REQUIRED: "the GPU needs a reset: try `nvidia-smi --gpu-reset`",
}

_Nvml = Any  # the pynvml module, which has no types
_Gpu = Any  # its handle of a device
_Value = Any  # what a sensor says, in the unit of TelemetrySample


class NvmlSensors:
    """The sensors of one GPU. Each is probed once, here; afterwards only those that answered are asked.

    Power is the instant value where the driver has one, else `nvmlDeviceGetPowerUsage`, which from Ampere on (but for
    GA100) is a mean over the last second: `capability["power_instant"]` tells which. PCIe throughput is read at each
    20th sample only, because NVML blocks for 20 ms a direction to measure it; it is None in between. What NVML has as
    fields comes from one call a sample.
    """

    def __init__(self, uuid: str) -> None:
        """Open the GPU with this uuid. Raises `SensorsLostError` if NVML or the GPU does not answer."""
        with ExitStack() as stack:
            self._nvml = stack.enter_context(_nvml())
            self._gpu = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
            self.capability, questions, fields = _probe(self._nvml, self._gpu)
            self._panel = Panel(self._nvml, self._gpu, questions, fields)
            self._reads = 0
            self._counters = gpm.Counters(self._nvml, self._gpu) if self.capability["gpm"] == "ok" else None
            if self._counters is not None:
                stack.callback(self._counters.close)
            self._open = stack.pop_all()

    def read(self, at_s: float) -> TelemetrySample:
        """Ask each sensor that answered the probe; a passing error costs its own value only."""
        return self.note(at_s)()

    def note(self, at_s: float) -> Callable[[], TelemetrySample]:
        """Ask as `read` does, and return what makes a sample of the answers, at a better time."""
        self._reads += 1
        answers = self._panel.ask(seldom=self._reads % _SELDOM == 0)
        if answers.lost is not None:
            raise SensorsLostError(_reason(self._nvml.NVMLError(answers.lost)))
        return functools.partial(self._sample, at_s, answers)

    def _sample(self, at_s: float, answers: Answers) -> TelemetrySample:
        fields, _ = self._panel.fields(answers)
        told = self._panel.told(answers)
        busy, memory_busy = told.get("utilization", (None, None))
        generation, width = told.get("pcie_link", (None, None))
        tx, rx = told.get("pcie_throughput", (None, None))
        corrected, uncorrected = told.get("ecc", (None, None))
        return TelemetrySample(
            at_s=at_s,
            power_w=fields[_POWER_INSTANT] / 1e3 if _POWER_INSTANT in fields else told.get("power"),
            power_average_w=fields[_POWER_AVERAGE] / 1e3 if {_POWER_AVERAGE, _POWER_INSTANT} <= fields.keys() else None,
            energy_j=told.get("energy"),
            temperature_c=told.get("temperature"),
            memory_temperature_c=fields.get(_MEMORY_TEMPERATURE),
            sm_clock_mhz=told.get("sm_clock"),
            memory_clock_mhz=told.get("memory_clock"),
            utilization_fraction=busy,
            memory_utilization_fraction=memory_busy,
            throttle_reasons=told.get("throttle_reasons"),
            throttle_s=_throttle_s(fields) or told.get("throttle_time"),
            pcie_generation=generation,
            pcie_width=width,
            pcie_tx_bytes_per_s=tx,
            pcie_rx_bytes_per_s=rx,
            ecc_corrected_count=corrected,
            ecc_uncorrected_count=uncorrected,
        )

    def counters(self) -> gpm.Mark | None:
        """Mark where the GPU's activity counters stand; None before Hopper, or if they do not answer now."""
        return self._counters.mark() if self._counters is not None else None

    def activity(self, first: gpm.Mark, last: gpm.Mark) -> Activity | None:
        """Return what was counted between two marks; None if these are too close to tell, or NVML will not."""
        return self._counters.between(first, last) if self._counters is not None else None

    def close(self) -> None:
        """Let go of NVML. Calling it again does nothing."""
        self._open.close()


class GpuProcess(NamedTuple):
    """A process that computes on a GPU, as the host numbers it, and the memory it holds there."""

    pid: int
    memory_bytes: int | None


def compute_processes(uuid: str) -> tuple[GpuProcess, ...] | None:
    """Return the processes other than this one that compute on a GPU; None where NVML does not say.

    Inside a container NVML shows the host's numbers or nothing at all, so ask before this process opens the GPU.
    """
    with suppress(SensorsLostError), _nvml() as nvml:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByUUID(uuid))
        return tuple(GpuProcess(p.pid, p.usedGpuMemory) for p in running if p.pid != os.getpid())
    return None


def nvml_devices() -> tuple[Device, ...]:
    """Return every GPU that NVML sees, in its order, which is that of the PCI bus; () where there is no driver.

    The selector counts all GPUs of the node in that order: CUDA counts so only with CUDA_DEVICE_ORDER=PCI_BUS_ID and
    without CUDA_VISIBLE_DEVICES. A GPU that is already lost is listed, with `unusable_reason`.
    """
    try:
        with _nvml() as nvml:
            return tuple(_device(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    except SensorsLostError:
        return ()


class NvmlIdentity(NamedTuple):
    """What NVML says of a GPU beyond its `Device`, for who holds it against other views; None where it does not say."""

    pci_device_id: int | None  # device in the upper half, vendor in the lower
    core_count: int | None
    virtualization_mode: int | None


def nvml_identities() -> dict[str, NvmlIdentity]:
    """Return what else NVML says of each GPU, by uuid; {} where there is no driver."""
    with suppress(SensorsLostError), _nvml() as nvml:
        asked = [_Inquiry(nvml, gpu) for index in range(nvml.nvmlDeviceGetCount()) if (gpu := _handle(nvml, index))]
        return {uuid: _identity(ask) for ask in asked if (uuid := ask.text(nvml.nvmlDeviceGetUUID))}
    return {}


def _handle(nvml: _Nvml, index: int) -> _Gpu | None:
    with suppress(nvml.NVMLError):
        return nvml.nvmlDeviceGetHandleByIndex(index)
    return None


def _identity(ask: _Inquiry) -> NvmlIdentity:
    pci = ask.value(ask.nvml.nvmlDeviceGetPciInfo)
    return NvmlIdentity(
        pci_device_id=pci.pciDeviceId or None if pci else None,
        core_count=ask.value(ask.nvml.nvmlDeviceGetNumGpuCores),
        virtualization_mode=ask.value(ask.nvml.nvmlDeviceGetVirtualizationMode),
    )


def attestation(uuid: str, nonce: bytes) -> tuple[bytes, bytes]:
    """Let a GPU sign its measurements over a nonce of 32 bytes; return the report and the certificates of the key that signed it.

    Nothing is verified. Source: NVML's confidential computing calls, from Hopper on, on a card that is in a mode for it.

    Raises:
        SensorsLostError: there is no such GPU, or it gives no report; says why.
    """
    with _nvml() as nvml:
        gpu = nvml.nvmlDeviceGetHandleByUUID(uuid)
        signed = nvml.nvmlDeviceGetConfComputeGpuAttestationReport(gpu, nonce)
        chain = nvml.nvmlDeviceGetConfComputeGpuCertificate(gpu)
        return (
            bytes(signed.attestationReport[: signed.attestationReportSize]),
            bytes(chain.attestationCertChain[: chain.attestationCertChainSize]),
        )


def nvml_status() -> str | None:
    """Return None if NVML works, else the reason why it does not, in one line."""
    try:
        with _nvml():
            return None
    except SensorsLostError as err:
        return str(err)


def throttle_names(mask: int) -> tuple[str, ...]:
    """Name every bit of NVML's clock event mask, sorted; several are set at once, and newer drivers have new ones."""
    bits = (1 << position for position in range(mask.bit_length()))
    return tuple(sorted(_THROTTLE_NAMES.get(bit, f"unknown_{bit:#x}") for bit in bits if mask & bit))


def calibrated(delta_counter: float, wall_s: float, *, seen_fraction: float | None = None) -> float | None:
    """Turn a step of a throttle counter over `wall_s` seconds into seconds; None where its unit cannot be told.

    The counter is `TelemetrySample.throttle_s` in nanoseconds, but drivers of some ages count microseconds. A cause that
    lasts no longer than the wall time often leaves one unit only; where both fit, `seen_fraction`, the share of samples
    whose throttle reasons name the cause, decides.
    """
    if delta_counter == 0:
        return 0.0
    fitting_s = [delta_counter * unit for unit in (1e-9, 1e-6) if 0 < delta_counter * unit <= _SLACK * wall_s]
    if len(fitting_s) > 1 and seen_fraction is not None:
        fitting_s = [min(fitting_s, key=lambda s: abs(s - seen_fraction * wall_s))]
    return min(fitting_s[0], wall_s) if len(fitting_s) == 1 else None


@contextmanager
def _nvml() -> Iterator[_Nvml]:
    """Yield `pynvml` between init and shutdown, which NVML counts. Raises `SensorsLostError` for any NVML error."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
    except pynvml.NVMLError as err:
        raise SensorsLostError(_reason(err)) from err


def _reason(err: Exception) -> str:
    code: int = err.value  # type: ignore[attr-defined]  # an NVMLError
    return _REASONS.get(code, f"NVML answers {str(err)!r} (code {code})")


class _Inquiry:
    """Questions to one GPU, whose answer is None where there is none; `lost` says why if the GPU is gone."""

    def __init__(self, nvml: _Nvml, gpu: _Gpu) -> None:
        self.nvml = nvml
        self.gpu = gpu
        self.lost: str | None = None

    def value(self, call: Callable[..., _Value], *args: object) -> _Value:
        try:
            return call(*(args or (self.gpu,)))
        except self.nvml.NVMLError as err:
            if err.value in LOST:
                self.lost = _reason(err)
            return None

    def text(self, call: Callable[..., _Value]) -> str | None:
        text = (self.value(call) or "").strip()
        return text if text.strip("[]") not in {"", "N/A", "Unknown"} else None

    def watts(self, call: Callable[..., _Value]) -> float | None:
        milliwatts = self.value(call)
        return milliwatts / 1e3 if milliwatts else None

    def power_limits_w(self) -> tuple[float | None, float | None]:
        low_and_high = self.value(self.nvml.nvmlDeviceGetPowerManagementLimitConstraints)
        return (low_and_high[0] / 1e3, low_and_high[1] / 1e3) if low_and_high else (None, None)

    def clock_max_mhz(self, clock: int) -> float | None:
        mhz = self.value(self.nvml.nvmlDeviceGetMaxClockInfo, self.gpu, clock)
        return float(mhz) if mhz else None

    def mode(self, call: Callable[..., _Value]) -> bool | None:
        now_and_next = self.value(call)
        return bool(now_and_next[0]) if now_and_next else None

    def switch(self, call: Callable[..., _Value]) -> bool | None:
        state = self.value(call)
        return None if state is None else bool(state)

    def sensors(self) -> Mapping[str, SensorState]:
        unknown: dict[str, SensorState] = dict.fromkeys(_FIELD_SENSORS.keys() | _QUESTIONS.keys() | {"gpm"}, "error")
        probed = self.value(_probe, self.nvml, self.gpu)
        return probed[0] if probed else unknown


def _device(nvml: _Nvml, index: int) -> Device:
    selector = f"cuda:{index}"
    try:
        ask = _Inquiry(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
    except nvml.NVMLError as err:
        return Device(
            uuid=f"unknown:{selector}",
            name="unknown NVIDIA GPU",
            kind="cuda",
            selector=selector,
            unusable_reason=_reason(err),
            sensors={},
        )
    name = ask.text(nvml.nvmlDeviceGetName) or "unknown NVIDIA GPU"
    memory = ask.value(nvml.nvmlDeviceGetMemoryInfo)
    pci = ask.value(nvml.nvmlDeviceGetPciInfo)
    capability = ask.value(nvml.nvmlDeviceGetCudaComputeCapability)
    remapped = ask.value(nvml.nvmlDeviceGetRemappedRows) or (None, None, None, None)
    power_min_w, power_max_w = ask.power_limits_w()
    sensors = ask.sensors()
    device = Device(
        uuid=ask.text(nvml.nvmlDeviceGetUUID) or f"unknown:{selector}",
        name=name,
        kind="cuda",
        selector=selector,
        emulated="Emulated" in name,
        memory_bytes=memory.total if memory else None,
        compute_capability="{}.{}".format(*capability) if capability else None,
        serial=ask.text(nvml.nvmlDeviceGetSerial),
        pci_bus_id=pci.busId if pci else None,
        pcie_generation_max=ask.value(nvml.nvmlDeviceGetMaxPcieLinkGeneration),
        pcie_width_max=ask.value(nvml.nvmlDeviceGetMaxPcieLinkWidth),
        vbios=ask.text(nvml.nvmlDeviceGetVbiosVersion),
        driver=ask.text(lambda _: nvml.nvmlSystemGetDriverVersion()),
        mig_enabled=ask.mode(nvml.nvmlDeviceGetMigMode),
        ecc_enabled=ask.mode(nvml.nvmlDeviceGetEccMode),
        power_limit_w=ask.watts(nvml.nvmlDeviceGetEnforcedPowerLimit),
        power_default_limit_w=ask.watts(nvml.nvmlDeviceGetPowerManagementDefaultLimit),
        power_min_limit_w=power_min_w,
        power_max_limit_w=power_max_w,
        energy_scope=_energy_scope(name) if sensors["energy"] == "ok" else None,
        memory_bus_bits=ask.value(nvml.nvmlDeviceGetMemoryBusWidth),
        memory_clock_max_mhz=ask.clock_max_mhz(nvml.NVML_CLOCK_MEM),
        sm_clock_max_mhz=ask.clock_max_mhz(nvml.NVML_CLOCK_SM),
        persistence_mode=ask.switch(nvml.nvmlDeviceGetPersistenceMode),
        compute_mode=_COMPUTE_MODES.get(ask.value(nvml.nvmlDeviceGetComputeMode)),
        display_active=ask.switch(nvml.nvmlDeviceGetDisplayActive),
        remapped_corrected_count=remapped[0],
        remapped_uncorrected_count=remapped[1],
        remapping_pending=None if remapped[2] is None else bool(remapped[2]),
        remapping_failed=None if remapped[3] is None else bool(remapped[3]),
        sensors=sensors,
    )
    return replace(device, unusable_reason=ask.lost)


def _energy_scope(name: str) -> EnergyScope:
    return "module" if any(chip in name for chip in _SUPERCHIPS) else "gpu"


def _probe(nvml: _Nvml, gpu: _Gpu) -> tuple[dict[str, SensorState], dict[str, Question], tuple[int, ...]]:
    """Try each sensor once, best source first. Raises for a lost GPU.

    Returns:
        Each sensor's state, the question to ask for each that needs one, and the fields that answered.
    """
    panel = Panel(nvml, gpu, {}, _FIELDS)
    values, refused = panel.fields(panel.ask())
    if lost := LOST.intersection(refused.values()):
        raise nvml.NVMLError(min(lost))
    states: dict[str, SensorState] = {}
    questions: dict[str, Question] = {}
    for name in sorted(_FIELD_SENSORS.keys() | _QUESTIONS.keys()):
        fields = _FIELD_SENSORS.get(name, ())
        tried: list[SensorState] = ["ok" if f in values else _STATES.get(refused[f], "error") for f in fields]
        for question in () if "ok" in tried else _QUESTIONS.get(name, ()):
            answers = Panel(nvml, gpu, {name: question}).ask()
            tried.append(_state(nvml, answers.lost or max(answers.codes)))
            if tried[-1] == "ok":
                questions[name] = question
                break
        states[name] = _best(tried)
    states["gpm"] = _gpm_state(nvml, gpu)
    states["power_instant"] = "ok" if _POWER_INSTANT in values else "not_supported"
    return states, questions, tuple(values)


def _best(tried: Collection[SensorState]) -> SensorState:
    """Return "ok" if one source was, else the first that did more than lack."""
    return "ok" if "ok" in tried else next((s for s in tried if s != "not_supported"), "not_supported")


def _gpm_state(nvml: _Nvml, gpu: _Gpu) -> SensorState:
    try:
        gpm.probe(nvml, gpu)
    except nvml.NVMLError as err:
        return _state(nvml, err.value)
    return "ok"


def _state(nvml: _Nvml, code: int) -> SensorState:
    """Say what NVML's code means for a sensor. Raises for a lost GPU."""
    if code in LOST:
        raise nvml.NVMLError(code)
    return _STATES.get(code, "error") if code else "ok"


def _throttle_s(fields: Mapping[int, float]) -> dict[str, float] | None:
    return {cause: fields[f] / 1e9 for cause, f in _THROTTLE_FIELDS.items() if f in fields} or None


def _number(pairs: Sequence[Pair]) -> float:
    return float(pairs[0][0])


def _thousandth(pairs: Sequence[Pair]) -> float:
    """Of milliwatts or millijoules."""
    return float(pairs[0][0]) / 1e3


def _fractions(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Of the GPU's and its memory's percent of time in use."""
    return pairs[0][0] / 100, pairs[0][1] / 100


def _events(pairs: Sequence[Pair]) -> tuple[str, ...]:
    return throttle_names(pairs[0][0])


def _each(pairs: Sequence[Pair]) -> tuple[int, ...]:
    return tuple(pair[0] for pair in pairs)


def _bytes_per_s(pairs: Sequence[Pair]) -> tuple[int, ...]:
    """NVML says "KB/s"; 1000 bytes are taken."""
    return tuple(pair[0] * 1000 for pair in pairs)


def _violations_s(pairs: Sequence[Pair]) -> dict[str, float]:
    """Of pairs of a time stamp and a time of violation, in nanoseconds."""
    return {cause: pair[1] / 1e9 for cause, pair in zip(_POLICIES, pairs, strict=True)}


_FIELD_SENSORS: Mapping[str, tuple[int, ...]] = {
    "memory_temperature": (_MEMORY_TEMPERATURE,),
    "power": (_POWER_INSTANT,),
    "power_average": (_POWER_AVERAGE,),
    "throttle_time": tuple(_THROTTLE_FIELDS.values()),
}

# Asked only where no field answers; the better source first.
_QUESTIONS: Mapping[str, tuple[Question, ...]] = {
    "ecc": (
        Question(calls=[("nvmlDeviceGetTotalEccErrors", kind, _VOLATILE) for kind in (0, 1)], told=_each, wide=True),
    ),
    "energy": (Question(calls=[("nvmlDeviceGetTotalEnergyConsumption",)], told=_thousandth, wide=True),),
    "memory_clock": (Question(calls=[("nvmlDeviceGetClockInfo", _MEMORY_CLOCK)], told=_number),),
    "pcie_link": (
        Question(calls=[("nvmlDeviceGetCurrPcieLinkGeneration",), ("nvmlDeviceGetCurrPcieLinkWidth",)], told=_each),
    ),
    "pcie_throughput": (
        Question(  # sent, received
            calls=[("nvmlDeviceGetPcieThroughput", way) for way in (0, 1)], told=_bytes_per_s, seldom=True
        ),
    ),
    "power": (Question(calls=[("nvmlDeviceGetPowerUsage",)], told=_thousandth),),
    "sm_clock": (Question(calls=[("nvmlDeviceGetClockInfo", _SM_CLOCK)], told=_number),),
    "temperature": (Question(calls=[("nvmlDeviceGetTemperature", 0)], told=_number),),
    "throttle_reasons": (
        Question(calls=[("nvmlDeviceGetCurrentClocksEventReasons",)], told=_events, wide=True),
        Question(calls=[("nvmlDeviceGetCurrentClocksThrottleReasons",)], told=_events, wide=True),  # before driver 535
    ),
    "throttle_time": (
        Question(
            calls=[("nvmlDeviceGetViolationStatus", policy) for policy in _POLICIES.values()],
            told=_violations_s,
            wide=True,
        ),
    ),
    "utilization": (Question(calls=[("nvmlDeviceGetUtilizationRates",)], told=_fractions),),
}
