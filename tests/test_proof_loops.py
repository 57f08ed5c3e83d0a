"""The compiled loops run without their compiler: the same bits, from nobody's files but this user's, and little memory."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from proofs import issued

from harness.errors import FailureError, MisuseError
from harness.model import Transcript
from harness.proof import ahead, bundle, chain, challenge, hashing, loops, merkle
from harness.proof.generator import random_bytes
from harness.proof.projection import Projection, prepare
from harness.proof.task import MODES, task_of
from harness.proof.transcript import write

# --- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["ahead", "by Numba"])
@pytest.mark.parametrize("mode", MODES)
def test_b_is_projected_alike_by_numpy_and_by_the_compiled_loop(
    mode: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "by Numba":
        monkeypatch.setattr(loops, "loop", loops._by_numba)
    else:
        assert isinstance(loops.loop("project_integers" if mode == "int8" else "project_floats"), loops._Native)
    for n in (16, 1040):  # a strip, and a strip with a rest
        by_numpy, compiled = (Projection(mode, n, bytes(32), b"secret", compiled=c)._projected for c in (False, True))
        assert np.allclose(by_numpy, compiled, rtol=0, atol=0 if mode == "int8" else 1e-10)


def test_arrays_with_gaps_are_refused() -> None:
    vectors, out, words = np.ones(32), np.zeros(64, dtype=np.int64), np.zeros(256, dtype=np.uint32)
    with pytest.raises(MisuseError, match="without gaps"):
        loops.loop("project_integers")(1, 2, 16, 0, 16, vectors, out[::2], words, words.view(np.int8))


# --- from whom --------------------------------------------------------------------------------------------------------

CODE = bytes(8) + b"\xc3"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Keep the cache in a folder of the test's, count what is compiled, and compile nothing."""
    asked: list[str] = []

    def make(name: str) -> bytes:
        asked.append(name)
        return CODE

    monkeypatch.setattr(loops, "_made", make)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return asked


def kept(tmp_path: Path) -> Path:
    (one,) = (tmp_path / "harness" / "loops").iterdir()
    return one


def test_code_is_made_once_and_kept_where_nobody_else_can_write(made: list[str], tmp_path: Path) -> None:
    assert [loops._code("x"), loops._code("x")] == [CODE, CODE]
    assert made == ["x"]
    assert kept(tmp_path).stat().st_mode & 0o777 == 0o600
    assert kept(tmp_path).parent.stat().st_mode & 0o777 == 0o700


def test_code_of_another_make_is_not_taken(made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    loops._code("x")
    monkeypatch.setattr(loops, "_origin", lambda: "0" * 32)
    loops._code("x")
    assert made == ["x", "x"]


def _swap(path: Path) -> None:
    """Put a link to a stranger's file in a file's place."""
    other = path.parent.parent / "other"
    path.rename(other)
    path.symlink_to(other)


EVIL = bytes(8) + b"evil"
BREACHES: dict[str, Callable[[Path], object]] = {
    "writable by others": lambda path: path.chmod(0o622),
    "a folder that others can enter": lambda path: path.parent.chmod(0o711),
    "a link": _swap,
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_code_that_another_could_have_written_is_not_run(breach: str, made: list[str], tmp_path: Path) -> None:
    loops._code("x")
    path = kept(tmp_path)
    path.write_bytes(hashlib.sha256(EVIL).digest() + EVIL)
    assert loops._code("x") == EVIL  # it would be, if nothing were wrong with it
    BREACHES[breach](path)
    assert loops._code("x") == CODE
    assert made == ["x", "x"]


@pytest.mark.parametrize("of", ["loops", ""])
def test_code_of_another_user_is_not_run(
    of: str, made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops._code("x")
    kept(tmp_path).write_bytes(hashlib.sha256(EVIL).digest() + EVIL)
    whose = (tmp_path / "harness" / of).stat() if of else kept(tmp_path).stat()
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        return os.stat_result((*found[:4], os.geteuid() + 1, *found[5:])) if found.st_ino == whose.st_ino else found

    monkeypatch.setattr(os, "fstat", fstat)
    assert loops._code("x") == CODE


@pytest.mark.parametrize("what", ["source", "version", "processor"])
def test_other_sources_versions_or_processors_have_other_code(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = loops._origin()
    assert loops._origin() == before
    if what == "source":
        real = Path.read_bytes
        monkeypatch.setattr(Path, "read_bytes", lambda path: real(path) + b"#" * (path.name == "cpu_kernels.py"))
    elif what == "version":
        monkeypatch.setattr(loops, "version", lambda name: f"{name} 99")
    else:
        told = Path.read_text
        other = {Path("/proc/cpuinfo"): "flags : avx\n"}
        monkeypatch.setattr(Path, "read_text", lambda path, *a, **k: other.get(path) or told(path, *a, **k))
    assert loops._origin() != before


@pytest.mark.parametrize(
    ("mode", "n", "loop"),
    [("int8", 1040, ["project_integers"]), ("float32", 1040, ["project_floats"]), ("int8", 1024, [])],
)
def test_a_service_has_its_loop_before_it_is_asked(
    mode: str, n: int, loop: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(loops, "loop", asked.append)
    prepare(mode, n)
    assert asked == loop


# --- by themselves ----------------------------------------------------------------------------------------------------


def _object(ir: str, reloc: str = "pic") -> bytes:
    from llvmlite import binding  # type: ignore[import-untyped]

    machine = binding.Target.from_default_triple().create_target_machine(reloc=reloc, codemodel="small")
    code: bytes = machine.emit_object(binding.parse_assembly(ir))
    return code


@pytest.fixture(scope="module", autouse=True)
def _llvm() -> None:
    import numba  # noqa: F401 - sets LLVM up


@pytest.mark.parametrize(
    ("ir", "reloc", "why"),
    [
        ("declare void @other()\ndefine void @f() {\n call void @other()\n ret void\n}", "pic", "needs other by"),
        (
            "@kept = internal global i32 7\ndefine i32 @f() {\n %1 = load i32, ptr @kept\n store i32 1, ptr @kept\n ret i32 %1\n}",
            "pic",
            "section .data is to be written to",
        ),
        (
            "@far = internal constant ptr @f\ndefine ptr @f() {\n %1 = load volatile ptr, ptr @far\n ret ptr %1\n}",
            "static",  # an address instead of a distance
            "by a relocation of kind 1,|by a relocation of kind 11,",
        ),
    ],
    ids=["a function", "a variable", "an address"],
)
def test_code_that_needs_something_else_is_refused(ir: str, reloc: str, why: str) -> None:
    with pytest.raises(FailureError, match=why):
        ahead.linked(_object(ir, reloc), "f")


def test_another_machines_code_is_refused() -> None:
    code = bytearray(_object("define void @f() {\n ret void\n}"))
    assert ahead.linked(bytes(code), "f")[0][:1] == b"\xc3"
    code[18] = 183  # aarch64
    with pytest.raises(FailureError, match="x86-64"):
        ahead.linked(bytes(code), "f")


def test_where_nothing_can_be_made_numba_does_it_and_says_so(
    made: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(loops, "_by_numba", lambda name: name)
    with caplog.at_level(logging.WARNING):
        assert loops.loop.__wrapped__("project_floats") == "project_floats"  # type: ignore[comparison-overlap]
    assert "no machine code for aarch64" in caplog.text
    assert made == []


def test_a_process_that_cannot_compile_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FailureError, match=r"no loop 'nosuch'; there are project_integers, project_floats"):
        loops._made("nosuch")
    with pytest.raises(MisuseError, match="no loop"):
        ahead.object_of("nosuch")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, CODE, b"killed"))
    with pytest.raises(FailureError, match="ended with 1: killed"):
        loops._made("x")


# --- memory -----------------------------------------------------------------------------------------------------------

_MEASURED = """
import sys
{body}
import resource
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, {loaded})
"""
_CHECK = """
from harness.cli import main
sys.argv = ["harness", "check", {path!r}, "--json"]
try: main()
except SystemExit: pass
"""


def _peak_kib(body: str, loaded: str = "0") -> tuple[str, list[int]]:
    code = _MEASURED.format(body=body, loaded=loaded)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *said, last = done.stdout.splitlines()
    return said[-1] if said else "", [*map(int, last.split())]


def _almost_true(path: Path, n: int) -> None:
    """Write a transcript that is right in all but its sums, which are found out last, after everything has been paid for."""
    asked = issued(n=n, steps=1, openings=1)
    task, seed, row = task_of(asked.params), challenge.seed(asked), 5
    codes, sums = random_bytes(seed, "X", row * n // 16, n // 16), np.zeros(n, dtype="<i4")
    way = bytes(range(32)) * merkle.path_length(row, n)
    leaf = hashing.row_digest(hashing.LEAF, 1, row, chain.advance("int8", sums, seed, 1, row).tobytes(), seed)
    root = merkle.climb(hashing.NODE, leaf, (row, n), way, seed).hex()
    nonces = (f"{i:064x}" for i in range(n * 50))
    nonce = next(one for one in nonces if bundle.cells(task, seed, (root,), one) == ((0, row),))
    openings = codes.tobytes() + sums.tobytes() + way
    transcript = Transcript(
        schema="harness.transcript/2",
        challenge=asked,
        commitment=root,
        scan_key=None,
        scan_roots=(),
        asked=nonce,
        openings_digest=hashlib.sha256(openings).hexdigest(),
        elapsed_s=0.0,
        public_key=None,
        signature=None,
    )
    write(path, transcript, openings)


@pytest.mark.slow  # 4.3 G elements are drawn: the size that the bound is given for
def test_a_check_takes_less_than_64_mb_above_a_bare_interpreter(tmp_path: Path) -> None:
    loops.loop("project_integers")  # the first check on a machine pays for this
    path = tmp_path / "transcript"
    _almost_true(path, 65536)
    _, (bare, _, _) = _peak_kib("")
    said, (peak, children, numba) = _peak_kib(
        _CHECK.format(path=str(path)), loaded="len({'numba', 'llvmlite'} & set(sys.modules))"
    )
    verdict: dict[str, Any] = json.loads(said)
    assert [fault["what"] for fault in verdict["faults"]] == ["the sums of row 5 of step 0 are not the product"]
    assert (peak - bare) * 1024 < 64e6
    assert children == 0  # nor in a process that it starts
    assert numba == 0
    _, (more, _, _) = _peak_kib("import harness.cli, numba")
    assert (more - bare) * 1024 > 64e6  # what Numba alone would take
