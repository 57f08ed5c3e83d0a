"""What a benchmark is, and how the ones that exist are found: by being there.

A benchmark is one decorated function in a module of its own, named as the benchmark. The packages to look in are named by
entry points of the group `harness.benchmarks`; ours is one of them, a plug-in's is another. No list is kept anywhere.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import itertools
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import FailureError, MisuseError
from harness.model import Cache, Device, Metric, Param, Params, Work

if TYPE_CHECKING:
    from harness.device.backend import Backend

__all__ = [
    "GROUP",
    "Benchmark",
    "Case",
    "Roof",
    "Sized",
    "Skip",
    "Work",
    "benchmark",
    "benchmarks",
    "cache_bytes",
    "find",
    "points",
    "require_capability",
    "require_memory",
    "rotation",
    "sum_error",
]

GROUP = "harness.benchmarks"
_MARK = "__harness_benchmark__"
_SETS_MOST = 32


class Skip(Exception):  # noqa: N818 - it ends a point, it is no error
    """Raised while a case is set up: this device cannot run this point. The message says why."""


def require_memory(backend: Backend, needed_bytes: int) -> None:
    """Raise `Skip` unless the device has this many bytes free, and a tenth more for what the libraries take."""
    free = backend.free_bytes()
    if needed_bytes * 1.1 > free:
        msg = f"needs {needed_bytes / 1e9:.2f} GB of memory, {free / 1e9:.2f} GB are free"
        raise Skip(msg)


def require_capability(backend: Backend, least: str, what: str) -> None:
    """Raise `Skip` unless the device is a GPU of at least this compute capability, such as "8.0"; `what` needs it."""
    has = backend.device.compute_capability
    if backend.device.kind != "cuda" or has is None:
        msg = f"a CPU has no {what}"
        raise Skip(msg)
    if _version(has) < _version(least):
        msg = f"{what} need compute capability {least}, this GPU has {has}"
        raise Skip(msg)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def cache_bytes(device: Device) -> int:
    """Return the size of the last cache before memory; where the device does not tell it, that of the largest known."""
    known = device.l2_bytes if device.kind == "cuda" else device.l3_bytes or device.l2_bytes
    return known or 1 << 27


def rotation(backend: Backend, operand_bytes: int) -> int:
    """Return how many sets of operands to take in turn so that none is still in the cache when its turn comes again.

    One where a set is five times the cache or more; else as many as make five caches, and one more. Never more than 32, which only sets
    too small to measure anything would need: their footprint tells.
    """
    wanted = 5 * cache_bytes(backend.device)
    return 1 if operand_bytes >= wanted else min(-(-wanted // max(operand_bytes, 1)) + 1, _SETS_MOST)


def sum_error(n: int, lanes: int, eps: float) -> float:
    """Return by what share a sum of n numbers of one sign may be off where so many lanes add up n / lanes of them each, one by one.

    Rounding errors of either sign add up as the root of their number: to 0.13 eps sqrt(n / lanes) of a lane's sum, if numbers are uniform
    in [0, 1), so this is eight deviations where there is one lane, and more where the errors of many cancel. What joins the lanes' sums
    is off by less than 8 eps.
    """
    return (math.sqrt(n / lanes) + 8) * eps


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """What a case's time is held against: rates that its device reaches beside it, and the least time that one run needs by them.

    `read` reads `read_bytes` from memory and `multiply` does `multiply_flops` operations. Both are timed before and after the case; the
    best of each counts. `least_s` takes bytes and operations a second.
    """

    read: Callable[[], object]
    read_bytes: int
    multiply: Callable[[], object]
    multiply_flops: int
    least_s: Callable[[float, float], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One point of a benchmark, set up on one device.

    `run` alone is timed and returns the answer, an array or a tuple of arrays on the device. `check` judges that answer and must
    refuse a wrong one; it may use the inputs, never a stored constant. `work` is what one `run` does.

    A case that claims to be `cold` reads its operands from memory at each run: `footprint_bytes` is what all the sets it rotates
    through take together, and a measurement whose footprint fits the cache is invalid. `inputs` are the random operands and
    `distribution` names how they were drawn; the record states their entropy, so that saturated inputs are found out.

    A case with a `roof` gets its ceiling from what the device was measured to do beside it, not from tables.
    """

    run: Callable[[], Any]
    work: Work
    check: Callable[[Any], bool]
    cache: Cache = "n/a"
    footprint_bytes: int | None = None
    inputs: tuple[Any, ...] = ()
    distribution: str = ""
    hide_launches: bool = True  # False where launching is what is measured
    roof: Roof | None = None


@dataclass(frozen=True, slots=True)
class Sized:
    """An axis whose one value depends on the device: small enough to check, or large enough to measure.

    A function is asked with the device for its value; its docstring's first line stands in the table of benchmarks.
    """

    check: Param
    cpu: Param | Callable[[Device], Param]
    cuda: Param | Callable[[Device], Param]

    def value(self, device: Device, *, small: bool) -> Param:
        """Return the value for a device; the one to check with where it is to be `small`."""
        chosen = self.check if small else self.cpu if device.kind == "cpu" else self.cuda
        return chosen(device) if callable(chosen) else chosen

    def told(self) -> dict[str, Param]:
        """Return its values by kind of device, those that depend on the device in words."""
        return {name: _in_words(getattr(self, name)) for name in ("check", "cpu", "cuda")}


def _in_words(value: Param | Callable[[Device], Param]) -> Param:
    return (value.__doc__ or "").partition("\n")[0].rstrip(".") if callable(value) else value


Axis = Sequence[Param] | Sized
Body = Callable[..., Case]


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A registered benchmark: its body, its axes, and which points the quick preset runs."""

    name: str
    version: int
    summary: str
    metric: Metric | None
    axes: Mapping[str, Axis]
    quick: Mapping[str, Sequence[Param]] = field(default_factory=dict)
    in_quick: bool = True
    sustained: bool = False
    peers: bool = False
    module: str
    body: Body

    def build(self, backend: Backend, seed: int, params: Params) -> Case:
        """Set one point up on a device. Raises `Skip` where the device cannot run it."""
        return self.body(backend, seed, **params)


def benchmark(
    *,
    version: int,
    metric: Metric | None = None,
    quick: Mapping[str, Sequence[Param]] | Literal[False] | None = None,
    sustained: bool = False,
    peers: bool = False,
    **axes: Axis,
) -> Callable[[Body], Body]:
    """Declare a function `(backend, seed, *, axis, ...) -> Case` to be a benchmark.

    Args:
        version: raised whenever what is computed changes; results of two versions are never compared.
        metric: the headline of its results; by default FLOP/s where `Work.flops` is set, else B/s, else items/s.
        quick: the values that preset `quick` keeps of an axis; axes not named keep all of theirs. False leaves the benchmark
            out of that preset unless it is asked for by name.
        sustained: its points are also measured once the device is as warm as it gets, in presets `standard` and `full`.
        peers: it uses the node's other GPUs too: they are visible beside its own, which is the first.
        axes: for each keyword of the function its values, the smallest first: that point must run on a CPU in under a second.
    """

    def mark(body: Body) -> Body:
        name = body.__name__
        keywords = {p.name for p in inspect.signature(body).parameters.values() if p.kind is p.KEYWORD_ONLY}
        if keywords != set(axes):
            msg = f"benchmark {name!r} takes {sorted(keywords)} but declares the axes {sorted(axes)}"
            raise MisuseError(msg)
        summary = (inspect.getdoc(body) or "").partition("\n")[0]
        record = Benchmark(
            name=name,
            version=version,
            summary=summary,
            metric=metric,
            axes=axes,
            quick=quick or {},
            in_quick=quick is not False,
            sustained=sustained,
            peers=peers,
            module=body.__module__,
            body=body,
        )
        setattr(body, _MARK, record)
        return body

    return mark


def _modules(package: str) -> Iterator[Any]:
    root = importlib.import_module(package)
    yield root
    for info in pkgutil.iter_modules(getattr(root, "__path__", ()), f"{package}."):
        yield importlib.import_module(info.name)


@functools.cache
def benchmarks() -> Mapping[str, Benchmark]:
    """Find every benchmark there is, by name.

    Raises:
        FailureError: two packages bring a benchmark of one name, or one of them does not import.
    """
    found: dict[str, Benchmark] = {}
    packages = sorted({e.value for e in importlib.metadata.entry_points(group=GROUP)} | {"harness.kernels"})
    for package in packages:
        try:
            modules = list(_modules(package))
        except ImportError as err:
            msg = f"the benchmarks of {package!r} cannot be imported: {err}"
            raise FailureError(msg) from err
        for module in modules:
            for record in (getattr(v, _MARK, None) for v in vars(module).values()):
                if not isinstance(record, Benchmark) or record.module != module.__name__:
                    continue
                if record.name in found:
                    msg = (
                        f"two benchmarks are called {record.name!r}: in {found[record.name].module} and {record.module}"
                    )
                    raise FailureError(msg)
                found[record.name] = record
    return dict(sorted(found.items()))


def find(names: Sequence[str] = ()) -> tuple[Benchmark, ...]:
    """Return the benchmarks of these names, all of them for none.

    Raises:
        MisuseError: no benchmark has that name.
    """
    known = benchmarks()
    for name in names:
        if name not in known:
            msg = f"no benchmark {name!r}; there are {', '.join(known)}"
            raise MisuseError(msg)
    return tuple(known[n] for n in dict.fromkeys(names)) if names else tuple(known.values())


def _values(axis: Axis, device: Device, *, small: bool) -> Sequence[Param]:
    if isinstance(axis, Sized):
        return (axis.value(device, small=small),)
    if small and not isinstance(axis[0], str):
        return axis[:1]
    return axis


def points(bench: Benchmark, device: Device, *, quick: bool = False, small: bool = False) -> tuple[Params, ...]:
    """List the points of a benchmark for a device.

    Args:
        bench: the benchmark.
        device: decides the value of a `Sized` axis.
        quick: keep only what the benchmark names for preset `quick`.
        small: sizes cut down to their first value, for a device that is slow (the emulator) or untimed (the tests).
    """
    chosen: dict[str, Sequence[Param]] = {}
    for name, axis in bench.axes.items():
        values = _values(axis, device, small=small)
        kept = [v for v in values if v in bench.quick.get(name, values)]
        chosen[name] = kept if quick and kept else values
    return tuple(dict(zip(chosen, combination, strict=True)) for combination in itertools.product(*chosen.values()))
