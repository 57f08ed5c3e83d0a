"""The sensors of a CPU, read from sysfs: RAPL package energy, temperature and core clocks.

RAPL is a model in the processor, not a meter at the plug: it leaves out memory, fans and the power supply. Since 2020
(CVE-2020-8694) most kernels let only root read it, which shows here as `no_permission`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean

from harness.model import SensorState, TelemetrySample

__all__ = ["CpuSensors"]

_HWMON_DRIVERS = frozenset({"coretemp", "cpu_thermal", "k10temp", "zenpower"})
_CLOCKS_AT_MOST = 16  # each read may interrupt its core, and the cores are being measured


class CpuSensors:
    """The whole node's processors. Energy is summed over packages and counts from the first read."""

    def __init__(self, root: Path = Path("/sys"), *, read_text: Callable[[Path], str] = Path.read_text) -> None:
        """Find what answers below `root`; `read_text` reads one file."""
        self._root = root
        self._read_text = read_text
        self._packages = tuple(self._find_packages())
        self._thermometers = tuple(self._find_thermometers())
        self._clocks = self._find_clocks()
        self._last_uj: dict[Path, int] = {}
        self._spent_uj = 0
        self._sources: dict[str, Callable[[], float]] = {
            "energy": self._energy_j,
            "sm_clock": self._clock_mhz,
            "temperature": self._temperature_c,
        }
        self.capability: dict[str, SensorState] = {name: _probe(source) for name, source in self._sources.items()}

    def read(self, at_s: float) -> TelemetrySample:
        """Read energy, clock and temperature. Power is not derived: the energy says more."""
        return TelemetrySample(
            at_s=at_s,
            energy_j=self._ask("energy"),
            temperature_c=self._ask("temperature"),
            sm_clock_mhz=self._ask("sm_clock"),
        )

    def note(self, at_s: float) -> Callable[[], TelemetrySample]:
        """Read them now, and return the sample when asked."""
        sample = self.read(at_s)
        return lambda: sample

    def counters(self) -> None:
        """Return nothing: a CPU's counters take rights that a benchmark should not have."""

    def activity(self, first: object, last: object) -> None:
        """Return nothing."""

    def close(self) -> None:
        """Nothing is held open."""

    def _ask(self, name: str) -> float | None:
        if self.capability[name] != "ok":
            return None
        try:
            return self._sources[name]()
        except (OSError, ValueError):
            return None

    def _number(self, path: Path) -> int:
        return int(self._read_text(path))

    def _label(self, path: Path) -> str:
        try:
            return self._read_text(path).strip()
        except (OSError, ValueError):
            return ""

    def _find_packages(self) -> Iterator[Path]:
        """Yield the zones of whole packages, not their parts (`intel-rapl:0:0`) nor the platform that holds them."""
        for zone in sorted((self._root / "class/powercap").glob("intel-rapl:*")):
            if zone.name.count(":") == 1 and self._label(zone / "name").startswith("package"):
                yield zone

    def _find_thermometers(self) -> Iterator[Path]:
        """Yield each package's sensor from hwmon, or else the CPU's thermal zones."""
        chips = [
            chip / "temp1_input"
            for chip in sorted((self._root / "class/hwmon").glob("hwmon*"))
            if self._label(chip / "name") in _HWMON_DRIVERS
        ]
        yield from chips
        for zone in () if chips else sorted((self._root / "class/thermal").glob("thermal_zone*")):
            kind = self._label(zone / "type")
            if kind == "x86_pkg_temp" or kind.startswith("cpu"):
                yield zone / "temp"

    def _find_clocks(self) -> tuple[Path, ...]:
        clocks = sorted((self._root / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        return tuple(clocks[:: -(-len(clocks) // _CLOCKS_AT_MOST) or 1])

    def _energy_j(self) -> float:
        """Add what each package spent since the last read; its counter wraps within minutes to hours."""
        now_uj = {zone: self._number(zone / "energy_uj") for zone in _present(self._packages)}
        spent_uj = self._spent_uj
        for zone, uj in now_uj.items():
            step_uj = uj - self._last_uj.get(zone, uj)
            spent_uj += step_uj if step_uj >= 0 else step_uj + self._number(zone / "max_energy_range_uj")
        self._last_uj, self._spent_uj = now_uj, spent_uj
        return self._spent_uj / 1e6

    def _temperature_c(self) -> float:
        return max(self._number(path) for path in _present(self._thermometers)) / 1e3

    def _clock_mhz(self) -> float:
        return fmean(self._number(path) for path in _present(self._clocks)) / 1e3


def _present(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    if not paths:
        msg = "this kernel has no such file"
        raise FileNotFoundError(msg)
    return paths


def _probe(source: Callable[[], float]) -> SensorState:
    try:
        source()
    except FileNotFoundError:
        return "not_supported"
    except PermissionError:
        return "no_permission"
    except (OSError, ValueError):
        return "error"
    return "ok"
