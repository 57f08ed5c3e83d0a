"""What a checkup says: of machines that were made up, of this one, of a GPU whose driver tells stories, and of an emulated one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_preflight import BUSY, GPU, NODE
from test_sensors import H100, RTX_4090, build

from harness.cluster.checkup import driver_version, look
from harness.cluster.doctor import Finding, GpuView, State, diagnose
from harness.device.sensors import GpuProcess
from harness.model import Device
from harness.render.doctor import checkup

ROOT = Path(__file__).parent.parent
CPU = Device(uuid="CPU-1", name="Example CPU", kind="cpu", selector="cpu", sensors={"energy": "ok"})
SEEN = replace(GPU, driver="580.65.06", sensors={"power": "ok", "energy": "not_supported"})
AT_REST = replace(BUSY, utilization_fraction=0.0, pcie_generation=1, throttle_reasons=("gpu_idle",))
HEALTHY = State(
    cpu=CPU,
    gpus=(GpuView(device=SEEN, sample=AT_REST, processes=()),),
    environment=NODE,
    gpus_on_bus=("0000:17:00.0",),
    driver="580.65.06",
    packages={"cupy-cuda13x": "14.2.0", "numba-cuda": "0.30.4", "ray": "2.60.0"},
    ray_port_open=False,
    clock_source="tsc",
    disk_free_bytes=100 << 30,
)
NO_GPU = replace(
    HEALTHY, gpus=(), gpus_on_bus=(), driver=None, nvml_reason="no NVIDIA driver", packages={"ray": "2.60.0"}
)
UNKNOWN = State(packages={}, cpu=replace(CPU, sensors={}))


def with_gpu(**changes: Any) -> State:
    return replace(HEALTHY, gpus=(GpuView(device=replace(SEEN, **changes), sample=AT_REST, processes=()),))


def seen(**changes: Any) -> State:
    return replace(HEALTHY, gpus=(replace(HEALTHY.gpus[0], **changes),))


def one(state: State, subject: str, topic: str) -> Finding:
    (finding,) = [f for f in diagnose(state) if (f.subject, f.topic) == (subject, topic)]
    return finding


def test_a_healthy_machine_has_nothing_to_mend() -> None:
    found = diagnose(HEALTHY)
    assert {f.status for f in found} == {"ok"}
    assert not any(f.advice or f.blocks for f in found)
    assert "at rest, which a run judges under load" in one(HEALTHY, "cuda:0", "link").what


def test_what_nobody_could_read_is_unknown_and_no_fault() -> None:
    found = {(f.subject, f.topic): f for f in diagnose(UNKNOWN)}
    for topic in ("memory", "CPUs", "governor", "load", "clock", "results"):
        assert found["machine", topic].status == "unknown", topic
        assert found["machine", topic].what
    assert not any(f.blocks for f in found.values())
    silent = replace(
        UNKNOWN, gpus=(GpuView(device=Device(uuid="G", name="Silent", kind="cuda", selector="cuda:0", sensors={})),)
    )
    assert {f.status for f in diagnose(silent) if f.subject == "cuda:0"} == {"ok", "unknown"}


def test_without_a_gpu_the_cpu_is_measured_and_it_is_said_how_to_get_a_gpu_run() -> None:
    driver = one(NO_GPU, "machine", "driver")
    assert (driver.status, driver.blocks) == ("cannot", False)
    assert driver.what == "no NVIDIA GPU on the PCI bus: only the CPU can be measured"
    assert "--ray HOST:PORT" in driver.advice
    assert "--extra cuda13" in one(NO_GPU, "machine", "CUDA wheels").advice
    assert not any(f.blocks for f in diagnose(NO_GPU))


@pytest.mark.parametrize(
    ("state", "subject", "topic", "status", "what", "advice", "blocks"),
    [
        (replace(NO_GPU, gpus_on_bus=("0000:17:00.0",)), "machine", "driver", "cannot", "1 NVIDIA GPU on the PCI bus, but no NVIDIA driver", "install NVIDIA's driver", True),
        (replace(HEALTHY, gpus=(), nvml_reason="no permission to talk to the NVIDIA driver"), "machine", "driver", "cannot", "no permission", "ls -l /dev/nvidia*", True),
        (replace(HEALTHY, packages={"ray": "2"}), "machine", "CUDA wheels", "cannot", "CuPy is not installed", "--extra cuda13", True),
        (replace(HEALTHY, packages={"ray": "2"}, driver="550.1"), "machine", "CUDA wheels", "cannot", "CuPy is not installed", "--extra cuda12", True),
        (replace(HEALTHY, driver="550.90.07"), "machine", "CUDA wheels", "cannot", "needs a driver of 580 or newer; this is 550.90.07", "--extra cuda12", True),
        (replace(HEALTHY, packages={"cupy-cuda13x": "1", "cupy-cuda12x": "1"}), "machine", "CUDA wheels", "cannot", "break each other", "pip uninstall", True),
        (replace(HEALTHY, packages={"cupy-cuda13x": "1"}), "machine", "CUDA wheels", "cannot", "numba-cuda missing", "--extra", True),
        (replace(HEALTHY, cuda_reason="CUDA sees no GPU"), "machine", "CUDA wheels", "cannot", "CUDA sees no GPU", "CUDA_VISIBLE_DEVICES", True),
        (replace(HEALTHY, packages={"cupy-cuda13x": "1", "numba-cuda": "1"}), "machine", "ray", "warning", "no fleet", "uv sync", False),
        (replace(HEALTHY, broken="cannot inspect this node's devices"), "machine", "devices", "cannot", "cannot inspect", "dmesg", True),
        (replace(HEALTHY, environment=replace(NODE, memory_free_bytes=10**9)), "machine", "memory", "warning", "1.0 GB of memory free", "end what", False),
        (replace(HEALTHY, cpu_quota=1.5), "machine", "CPUs", "warning", "grants 1.5 of 8 CPUs", "docker update", False),
        (replace(HEALTHY, environment=replace(NODE, governor="powersave")), "machine", "governor", "warning", "powersave", "cpupower", False),
        (replace(HEALTHY, environment=replace(NODE, load_average_1min=7.9)), "machine", "load", "warning", "7.9 on 8", "top", False),
        (replace(HEALTHY, clock_source="hpet"), "machine", "clock", "warning", "hpet", "clocksource=tsc", False),
        (replace(HEALTHY, disk_free_bytes=5_000_000), "machine", "results", "warning", "5 MB free", "--out", False),
        (replace(HEALTHY, results_trouble="'/' is not this user's to write to"), "machine", "results", "cannot", "no report", "--out", True),
        (replace(HEALTHY, cpu=replace(CPU, sensors={"energy": "no_permission"})), "cpu", "sensors", "warning", "no permission: energy", "chmod a+r", False),
        (with_gpu(persistence_mode=False), "cuda:0", "modes", "warning", "persistence mode off", "-pm 1", False),
        (with_gpu(compute_mode="prohibited"), "cuda:0", "modes", "cannot", "prohibited", "-c DEFAULT", True),
        (with_gpu(power_limit_w=250.0), "cuda:0", "power", "warning", "250 of 450 W", "-pl 450", False),
        (with_gpu(remapping_failed=True), "cuda:0", "memory", "cannot", "faulty row", "replace the card", True),
        (with_gpu(ecc_enabled=False), "cuda:0", "memory", "warning", "ECC off", "-e 1", False),
        (with_gpu(sensors={"power": "ok", "ecc": "no_permission"}), "cuda:0", "sensors", "warning", "no permission: ecc", "root", False),
        (with_gpu(unusable_reason="it fell off the bus"), "cuda:0", "device", "cannot", "fell off the bus", "nvidia-smi", True),
        (with_gpu(emulated=True), "cuda:0", "device", "warning", "EMULATED", "--ray", False),
        (seen(processes=(GpuProcess(7, 10**9),)), "cuda:0", "company", "warning", "1 other compute process", "process 7", False),
        (seen(sample=replace(AT_REST, pcie_width=8)), "cuda:0", "link", "warning", "PCIe x8 of x16", "lspci", False),
        (seen(sample=replace(AT_REST, throttle_reasons=("hw_thermal", "gpu_idle"))), "cuda:0", "clocks", "warning", "hw_thermal", "PERFORMANCE", False),
        (seen(sample=replace(AT_REST, throttle_reasons=("applications_clocks",))), "cuda:0", "clocks", "warning", "below the default", "-rac", False),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 12 else "",
)  # fmt: skip
def test_each_trouble_is_told_with_what_mends_it(
    state: State, subject: str, topic: str, status: str, what: str, advice: str, blocks: bool
) -> None:
    finding = one(state, subject, topic)
    assert (finding.status, finding.blocks) == (status, blocks), finding
    assert what in finding.what
    assert advice in finding.advice
    before = {(f.subject, f.topic, f.status) for f in diagnose(HEALTHY)}
    assert (subject, topic, status) not in before  # it is this trouble that was found


def test_the_table_says_what_to_do_and_sums_up() -> None:
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(checkup(diagnose(with_gpu(power_limit_w=250.0))))
    said = console.export_text()
    assert "to mend it: `nvidia-smi -i GPU-1 -pl 450`" in " ".join(said.split())
    assert said.rstrip().endswith("can be measured: cpu, cuda:0; 1 warning")


# --- what is read from the kernel --------------------------------------------------------------------------------------


def planted(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:19:26 UTC 2025\n", "580.65.06"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.90  Release Build\n", "550.90"),
        ("something else\n", None),
    ],
)
def test_the_driver_tells_its_version_in_proc(tmp_path: Path, line: str, version: str | None) -> None:
    assert driver_version(planted(tmp_path, {"proc/driver/nvidia/version": line})) == version
    assert driver_version(tmp_path / "nowhere") is None


def test_quota_bus_and_clock_are_read_from_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.cluster import checkup as module
    from harness.errors import FailureError

    def crash() -> None:
        msg = "cannot inspect this node's devices: signal SIGSEGV"
        raise FailureError(msg)

    monkeypatch.setattr(module, "inspect_here", crash)  # a driver that crashes whoever asks it
    gpu, sound = "sys/bus/pci/devices/0000:17:00.0/", "sys/bus/pci/devices/0000:17:00.1/"
    files = {
        f"{gpu}vendor": "0x10de\n",
        f"{gpu}class": "0x030200\n",
        f"{sound}vendor": "0x10de\n",
        f"{sound}class": "0x040300\n",
    }
    files["sys/devices/system/clocksource/clocksource0/current_clocksource"] = "hpet\n"
    root = planted(tmp_path, files | {"sys/fs/cgroup/cpu.max": "150000 100000\n"})
    state = look(tmp_path / "new" / "results", root)
    assert (state.cpu_quota, state.clock_source, state.gpus_on_bus) == (1.5, "hpet", ("0000:17:00.0",))
    assert (state.broken, state.nvml_reason) == ("cannot inspect this node's devices: signal SIGSEGV", None)
    assert state.results_trouble is None
    assert any(f.blocks for f in diagnose(state))
    (root / "sys/fs/cgroup/cpu.max").write_text("max 100000\n")
    assert look(root / "sys/fs/cgroup/cpu.max", root).cpu_quota is None
    assert "is not a folder" in (look(root / "sys/fs/cgroup/cpu.max", root).results_trouble or "")


# --- whole machines ----------------------------------------------------------------------------------------------------


def doctor(**env: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    command = [sys.executable, "-m", "harness", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | env)
    assert "Traceback" not in done.stderr, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return done.returncode, {(f["subject"], f["topic"]): f for f in found}


@pytest.mark.slow  # a checkup imports what measures, and starts a process to spare
def test_of_this_machine() -> None:
    code, found = doctor()
    assert found["cpu", "device"]["status"] == "ok"
    gpus = [subject for subject, topic in found if topic == "device" and subject.startswith("cuda")]
    if not gpus:
        assert found["machine", "driver"]["status"] == "cannot"
        assert (code, any(f["blocks"] for f in found.values())) == (0, False)


@pytest.mark.slow  # as above, with a driver that is built here
def test_of_a_machine_whose_driver_tells_of_faults(tmp_path: Path) -> None:
    story = "0.throttle=0x41 0.processes=2 1.lost=1 0.nvmlDeviceGetTotalEccErrors=4"
    code, found = doctor(LD_LIBRARY_PATH=str(build(tmp_path)), FAKE_NVML=story, CUDA_VISIBLE_DEVICES="")
    assert code == 1
    assert found["machine", "driver"]["what"] == "NVIDIA driver 580.95.05"
    assert "2 other compute processes on the GPU" in found["cuda:0", "company"]["what"]
    assert "hw_thermal" in found["cuda:0", "clocks"]["what"]
    assert "no permission: ecc" in found["cuda:0", "sensors"]["what"]
    assert "fell off the bus" in found["cuda:1", "device"]["what"]
    assert ("cuda:1", "clocks") not in found
    assert {H100, RTX_4090}.isdisjoint(found)


@pytest.mark.gpu
def test_of_an_emulated_gpu() -> None:
    from harness.device.cuda import cuda_devices

    code, found = doctor()
    device = found["cuda:0", "device"]
    assert cuda_devices()[0].emulated == ("EMULATED" in device["what"])
    if "EMULATED" in device["what"]:
        assert (code, device["status"]) == (0, "warning")
        assert found["machine", "driver"]["what"] == "no NVIDIA driver; CUDA is emulated"
