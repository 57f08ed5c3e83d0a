"""The machine code of every kernel, for every architecture, holds what it should and nothing that makes its figure a lie.

No GPU is needed: compilers work without one. Kernels in CUDA C++ are found as constants in the modules, range kernels by launching
them once (hence on a device), which tells the types they are compiled for. Not covered: vendor libraries.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import broken
import pytest
import recording
import sass

import harness.device
import harness.inference
import harness.kernels
import harness.proof
from harness.device.backend import CudaSource

pytestmark = [
    pytest.mark.skipif(bool(sass.missing()), reason=sass.missing() or ""),
    pytest.mark.xdist_group("compiled"),  # they share what was compiled
]

every_capability = pytest.mark.parametrize("capability", sass.CAPABILITIES)

# What a kernel may do although the rule forbids it: (kernel, the fault's first words) -> the reason.
EXEMPT: Mapping[tuple[str, str], str] = {
    ("harness.kernels.montecarlo.payoffs", "float64"): (
        "sinf and cosf reduce angles above 105615 in float64; ours are below 2 pi and never get there"
    ),
}

# Benchmarks that time chains of one instruction, eight chains side by side: a loop holds a multiple of eight, or steps were merged.
CHAINS = 8
CHAINED = {
    "harness.kernels.fma.": re.compile(r"^(FFMA2?|DFMA|HFMA2(\.\w+)*)$"),
    "harness.kernels.int_mad.mads": re.compile(r"^IMAD$"),
    "harness.kernels.int_mad.DP4A": re.compile(r"^IDP\b"),
    "harness.kernels.mma.": re.compile(r"^[DHIQ]MMA\b"),
}


def _members(name: str, value: object) -> Iterator[tuple[str, CudaSource]]:
    """Walk through a constant; the sources in it are named by the way to them."""
    if isinstance(value, CudaSource):
        yield name, value
    elif isinstance(value, Mapping):
        for key, member in value.items():
            yield from _members(f"{name}[{key}]", member)
    elif isinstance(value, tuple | list):
        for i, member in enumerate(value):
            yield from _members(f"{name}[{i}]", member)


def sources() -> dict[str, CudaSource]:
    """Find every CUDA source that stands in a module of ours; one that several modules name, once."""
    found: dict[str, CudaSource] = {}
    for package in (harness.kernels, harness.device, harness.inference, harness.proof):
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for constant, value in vars(importlib.import_module(info.name)).items():
                for name, source in _members(f"{info.name}.{constant}", value):
                    if source not in found.values():
                        found[name] = source
    return found


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def uses_doubles(source: CudaSource) -> bool:
    """Tell whether a source asks for float64, in its text or in a definition among its options."""
    return bool(re.search(r"\bdouble[234]?\b", " ".join((source.text, *source.options))))


def uses_tensor_cores(source: CudaSource) -> bool:
    """Tell whether a source's code, comments aside, speaks of mma."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", source.text, flags=re.DOTALL)
    return bool(re.search(r"(?<![a-z])w?mma(?![a-z])", text))


def faults(code: sass.Code | str, *, doubles: bool, tensor: bool) -> list[str]:
    """List what is wrong with a kernel's machine code: `doubles` and `tensor` tell what it may and must use."""
    if isinstance(code, str):
        return [code]
    found = {
        "local memory": sass.local_accesses(code),
        "float64": {} if doubles else sass.doubles(code),
        "tensor cores unasked": {} if tensor else sass.tensor_instructions(code),
        "no tensor core": {"MMA": 0} if tensor and not sass.tensor_instructions(code) else {},
    }
    return [f"{what}: {dict(counts)}" for what, counts in found.items() if counts]


def chain_faults(code: sass.Code | str, opcode: re.Pattern[str]) -> list[str]:
    """List what is wrong with a kernel that should loop over eight chains of one instruction."""
    if isinstance(code, str):
        return [code]
    loops = [sum(bool(opcode.search(i.opcode)) for i in loop) for loop in sass.innermost_loops(code)]
    most = max(loops, default=0)
    if most == 0 or most % CHAINS:
        return [f"chains: {most} of {opcode.pattern} in the largest loop, no positive multiple of {CHAINS}"]
    return []


def _excused(name: str, messages: list[str]) -> list[str]:
    kernel = name.partition("#")[0]  # without the types of its arguments
    return [f"{name}: {m}" for m in messages if not any(k == kernel and m.startswith(w) for k, w in EXEMPT)]


Listing = dict[str, tuple[CudaSource, sass.Code | str]]


@functools.cache
def compiled_sources(capability: str) -> Listing:
    """Compile every source that this capability can run."""
    able = {n: s for n, s in sources().items() if _version(s.capability_min) <= _version(capability)}
    code = sass.listings([partial(sass.compile_source, s, capability) for s in able.values()], capability)
    return {name: (source, c) for (name, source), c in zip(able.items(), code, strict=True)}


@functools.cache
def launched_kernels() -> dict[str, tuple[Callable[..., None], Any]]:
    """Launch every range kernel once, and name each with the types it was compiled for."""
    return {f"{k.__module__}.{k.__name__}#{', '.join(map(str, t))}": (k, t) for k, t in recording.signatures()}


@functools.cache
def compiled_range_kernels(capability: str) -> dict[str, sass.Code | str]:
    """Compile every range kernel that is launched anywhere, for the types it is launched with."""
    kernels = launched_kernels()
    builds = [partial(sass.compile_range_kernel, k, types, capability) for k, types in kernels.values()]
    return dict(zip(kernels, sass.listings(builds, capability), strict=True))


def test_sources_are_found_where_they_stand() -> None:
    found = sources()
    assert {name for name, source in found.items() if source.name == "dots"} == {"harness.kernels.int_mad.DP4A"}
    assert "harness.inference.fused_kernels.SOURCES[int4][head]" in found
    assert dict(_members("x", {"a": (broken.DEAD,)})) == {"x[a][0]": broken.DEAD}


@pytest.mark.slow
@every_capability
def test_every_source_compiles_to_what_it_should(capability: str) -> None:
    problems = [
        problem
        for name, (source, code) in compiled_sources(capability).items()
        for problem in _excused(
            name,
            faults(code, doubles=uses_doubles(source), tensor=uses_tensor_cores(source)),
        )
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@every_capability
def test_every_chain_of_a_source_is_there(capability: str) -> None:
    problems = [
        problem
        for name, (_, code) in compiled_sources(capability).items()
        for beginning, opcode in CHAINED.items()
        if name.startswith(beginning)
        for problem in _excused(name, chain_faults(code, opcode))
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.gpu
@pytest.mark.slow
@every_capability
def test_every_range_kernel_compiles_to_what_it_should(capability: str) -> None:
    problems = [
        problem
        for name, code in compiled_range_kernels(capability).items()
        for problem in _excused(name, faults(code, doubles="float64" in name, tensor=False))
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.gpu
@pytest.mark.slow
@every_capability
def test_every_chain_of_a_range_kernel_is_there(capability: str) -> None:
    problems = [
        problem
        for name, code in compiled_range_kernels(capability).items()
        for beginning, opcode in CHAINED.items()
        if name.startswith(beginning)
        for problem in _excused(name, chain_faults(code, opcode))
    ]
    assert not problems, "\n".join(problems)


def listing(build: Callable[[], bytes], capability: str) -> sass.Code | str:
    (code,) = sass.listings([build], capability)
    return code


@pytest.mark.parametrize(
    ("source", "fault"),
    [(broken.SPILLED, "local memory"), (broken.DOUBLED, "float64"), (broken.SCALAR, "no tensor core")],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_broken_source_is_found(source: CudaSource, fault: str) -> None:
    code = listing(partial(sass.compile_source, source, "9.0"), "9.0")
    (message,) = faults(code, doubles=False, tensor=uses_tensor_cores(source))
    assert message.startswith(fault)


def test_a_source_that_does_not_compile_is_found() -> None:
    source = CudaSource(name="none", text='extern "C" __global__ void none() { undeclared = 1; }', twin=print)
    (message,) = faults(listing(partial(sass.compile_source, source, "9.0"), "9.0"), doubles=False, tensor=False)
    assert "undeclared" in message


def test_a_dead_loop_is_found() -> None:
    code = listing(partial(sass.compile_source, broken.DEAD, "9.0"), "9.0")
    assert not faults(code, doubles=False, tensor=False)
    assert chain_faults(code, re.compile("^FFMA$"))


def _one_array(kind: str) -> tuple[Any, ...]:
    from numba import types

    array = types.Array(getattr(types, kind), 1, "C")
    return types.uint64, array, array


@pytest.mark.gpu
def test_an_untyped_literal_in_a_range_kernel_is_found() -> None:
    code = listing(partial(sass.compile_range_kernel, broken.untyped, _one_array("float32"), "9.0"), "9.0")
    (message,) = faults(code, doubles=False, tensor=False)
    assert message.startswith("float64")
