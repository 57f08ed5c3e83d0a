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
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import FailureError, MisuseError
from harness.model import DeviceKind, Metric, Param, Params, Work

if TYPE_CHECKING:
    from harness.device.backend import Backend

__all__ = [
    "GROUP",
    "Benchmark",
    "Case",
    "Sized",
    "Skip",
    "Work",
    "benchmark",
    "benchmarks",
    "find",
    "points",
    "require_memory",
]

GROUP = "harness.benchmarks"
_MARK = "__harness_benchmark__"


class Skip(Exception):  # noqa: N818 - it ends a point, it is no error
    """Raised while a case is set up: this device cannot run this point. The message says why."""


def require_memory(backend: Backend, needed_bytes: int) -> None:
    """Raise `Skip` unless the device has this many bytes free, and a tenth more for what the libraries take."""
    free = backend.free_bytes()
    if needed_bytes * 1.1 > free:
        msg = f"needs {needed_bytes / 1e9:.2f} GB of memory, {free / 1e9:.2f} GB are free"
        raise Skip(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One point of a benchmark, set up on one device.

    `run` alone is timed and returns the answer, an array or a tuple of arrays on the device. `check` judges that answer and must
    refuse a wrong one; it may use the inputs, never a stored constant. `work` is what one `run` does.
    """

    run: Callable[[], Any]
    work: Work
    check: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Sized:
    """An axis whose one value depends on the device: small enough to check, or large enough to measure."""

    check: Param
    cpu: Param
    cuda: Param


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
    **axes: Axis,
) -> Callable[[Body], Body]:
    """Declare a function `(backend, seed, *, axis, ...) -> Case` to be a benchmark.

    Args:
        version: raised whenever what is computed changes; results of two versions are never compared.
        metric: the headline of its results; by default FLOP/s where `Work.flops` is set, else B/s, else items/s.
        quick: the values that preset `quick` keeps of an axis; axes not named keep all of theirs. False leaves the benchmark
            out of that preset unless it is asked for by name.
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


def _values(axis: Axis, kind: DeviceKind, *, small: bool) -> Sequence[Param]:
    if isinstance(axis, Sized):
        return (axis.check if small else getattr(axis, kind),)
    if small and not isinstance(axis[0], str):
        return axis[:1]
    return axis


def points(bench: Benchmark, kind: DeviceKind, *, quick: bool = False, small: bool = False) -> tuple[Params, ...]:
    """List the points of a benchmark for a kind of device.

    Args:
        bench: the benchmark.
        kind: decides the value of a `Sized` axis.
        quick: keep only what the benchmark names for preset `quick`.
        small: sizes cut down to their first value, for a device that is slow (the emulator) or untimed (the tests).
    """
    chosen: dict[str, Sequence[Param]] = {}
    for name, axis in bench.axes.items():
        values = _values(axis, kind, small=small)
        kept = [v for v in values if v in bench.quick.get(name, values)]
        chosen[name] = kept if quick and kept else values
    return tuple(dict(zip(chosen, combination, strict=True)) for combination in itertools.product(*chosen.values()))
