"""Guards of a proof that nothing else would miss if they went: ranges of a challenge, what is forgotten, bounds, and files."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import peak_bytes
from proofs import CPU, NOW, answered, commit, faults, issued

from harness import codec
from harness.device.cpu import CpuDevice
from harness.errors import FailureError, ForgeryError, MisuseError
from harness.model import Challenge, Verdict
from harness.proof import bounds, bundle, by_file, chain, challenge, hashing, prover, residency, rows, verifier
from harness.proof.generator import random_bytes
from harness.proof.projection import Projection, tolerance
from harness.proof.signing import keygen, load_key
from harness.proof.task import MODES, N_MOST, kept_fraction, opened_most_bytes, task_of
from harness.proof.transcript import open_file, write
from harness.proof.verifier import Session, check, faults_of

# --- challenges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: issued(provider=""), "provider must have 1 to 256 characters, not 0"),
        (lambda: issued(device="d" * 257), "device_uuid must have 1 to 256 characters, not 257"),
        (lambda: issued(beacon="b" * 257), "beacon must have 1 to 256 characters, not 257"),
        (lambda: issued(epoch=-1), "epoch must be 0 or more, not -1"),
        (lambda: issued(steps=True), "steps must be a whole number"),
        (lambda: _lasting(0), "valid for 1 to 86400 s, not 0"),
        (lambda: _lasting(86_401), "valid for 1 to 86400 s, not 86401"),
    ],
)
def test_a_challenge_out_of_range_is_refused(made: Callable[[], Challenge], why: str) -> None:
    with pytest.raises(MisuseError, match=why):
        made()
    assert issued(provider="p" * 256, epoch=0)
    assert _lasting(86_400)


def _lasting(seconds: int) -> Challenge:
    params = issued().params
    return challenge.issue(provider="p", device_uuid="d", epoch=0, params=params, now=NOW, valid_for_s=seconds)


def test_a_ledger_forgets_what_has_expired() -> None:
    ledger, first, second = challenge.Ledger(), issued(), issued(nonce="cd" * 32)
    ledger.add(first)
    ledger.add(second)
    late = NOW + timedelta(seconds=121)
    with pytest.raises(MisuseError, match="expired"):
        ledger.take(first, now=late)
    ledger.add(second)  # it was forgotten: its nonce is free again


def test_sums_of_the_largest_matrices_fit_32_bits_and_of_the_next_they_would_not() -> None:
    assert N_MOST * 128 * 128 < 2**31 <= (N_MOST + 16) * 128 * 128


@pytest.mark.parametrize("mode", MODES)
def test_openings_never_take_more_than_was_reckoned_with(mode: str) -> None:
    for n, steps in ((16, 1), (16, 3), (48, 5), (1040, 7)):
        task = task_of(issued(mode=mode, n=n, steps=steps, openings=1, scans=2, scan_openings=1).params)
        cells = [divmod(i, n) for i in range(steps * n)]
        worst = max(bundle.opening_bytes(task, c) for c in cells) + max(
            bundle.scan_opening_bytes(task, c) for c in cells
        )
        assert worst <= opened_most_bytes(task) < worst * 1.5 + 500


# --- the step between products ----------------------------------------------------------------------------------------


def test_every_bit_of_a_sum_moves_the_byte_that_is_kept() -> None:
    """Where one did not, who leaves it out of the work would leave no trace in the states."""
    sums = np.random.default_rng(3).integers(-(2**31), 2**31, 4096, dtype=np.int64).astype(np.int32)
    kept = chain.kept("int8", 16, sums)
    for bit in range(32):
        other = (sums.view(np.uint32) ^ np.uint32(1 << bit)).view(np.int32)
        assert (chain.kept("int8", 16, other) != kept).mean() > 0.98  # 255 of 256 where all are mixed


def test_f_is_what_other_verifiers_compute() -> None:
    """In mode int8 the highest byte of MurmurHash3's finaliser without its last shift, here in Python's integers; in floats, eighths at n = 16."""

    def mixed(h: int) -> int:
        h ^= h >> 16
        h = h * 0x85EBCA6B % 2**32
        h ^= h >> 13
        return (h * 0xC2B2AE35 % 2**32) >> 24

    sums = np.random.default_rng(4).integers(-(2**31), 2**31, 500, dtype=np.int64).astype(np.int32)
    assert chain.kept("int8", 16, sums).tolist() == [mixed(int(y) % 2**32) for y in sums]
    for mode, kind in (("float32", np.float32), ("float64", np.float64)):
        rough = np.array([-1e9, -16.1, -0.01, 0, 0.01, 0.13, 15.9, 1e9], dtype=kind)
        assert chain.kept(mode, 16, rough).tolist() == [128, 128, 255, 0, 0, 1, 127, 127]


def test_sums_of_integers_on_the_host_are_exact_beyond_what_float32_holds() -> None:
    n = 4096
    task = task_of(issued(n=n).params)
    drawn, rows = np.full((n, 16), 0x7F, dtype=np.uint8), np.full((1, n), 0x7F, dtype=np.uint8)
    rows[0, 0] = 0x80
    out = np.empty((1, 16), dtype=np.int32)
    chain._on_host(task, drawn)(rows, out)
    assert (out == 127 * 127 * (n - 1) - 128 * 127).all()


def test_digests_of_different_kinds_are_never_alike() -> None:
    kinds = (hashing.LEAF, hashing.SUMS, hashing.NODE, hashing.TOP, hashing.SCAN, hashing.SCAN_NODE)
    assert len({hashing.row_digest(kind, 1, 2, bytes(64), bytes(32)) for kind in kinds}) == 6


# --- projections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_each_vector_alone_finds_a_wrong_row(mode: str) -> None:
    row = random_bytes(bytes(32), "X", 0, 1)
    count = len(Projection(mode, 16, bytes(32), b"secret")._vectors)
    assert count == (2 if mode == "int8" else 4)
    for alone in range(count):
        drawn = Projection(mode, 16, bytes(32), b"secret")
        assert len({vector.tobytes() for vector in drawn._vectors}) == count
        right = drawn._projected.copy()
        for other in {*range(count)} - {alone}:
            drawn._vectors[other] = right[other] = drawn._projected[other] = 0
        b = chain.numbers(mode)[random_bytes(bytes(32), "B", 0, 16).reshape(16, 16)]
        sums = chain.numbers(mode)[row] @ b
        assert drawn.residual(row, sums) <= tolerance(mode, 16)
        assert drawn.residual(row, sums + 1) > tolerance(mode, 16)


def test_tolerances_are_those_that_were_published() -> None:
    """The table in docs/proof.md, at n = 8,192."""
    told = {mode: tolerance(mode, 8192) for mode in MODES}
    assert told["int8"] == 0
    assert told["float16"] == told["bfloat16"] == pytest.approx(8.2e-5, rel=0.01)
    assert told["float32"] == pytest.approx(1.1e-5, rel=0.02)
    assert told["float64"] == 1e-12


def test_a_residual_that_is_no_number_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = answered(commit(issued(mode="float64")))
    assert faults(answer) == []
    monkeypatch.setattr(Projection, "residual", lambda *_: float("nan"))
    assert any("are not the product: nan apart" in what for what in faults(answer))


# --- scans ------------------------------------------------------------------------------------------------------------


def test_keys_of_scans_share_no_word() -> None:
    words = [*residency.key_words("ab" * 32, 256).tolist(), *residency.key_words("cd" * 32, 256).tolist()]
    assert len({*words}) == 64


def test_a_second_scan_that_was_not_read_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sums once and gives the same sums again saves every scan but the first."""
    held = commit(issued(scans=2, scan_openings=4))
    first = residency.key_words("cd" * 32, 16)
    with monkeypatch.context() as patch:
        patch.setattr(residency, "key_words", lambda *_: first)
        held.scan("cd" * 32)
    assert all(what.startswith("scan 1 has another sum") for what in faults(answered(held)))
    assert faults(answered(held))


def test_states_that_do_not_fit_are_not_begun() -> None:
    class Full(CpuDevice):
        def free_bytes(self) -> int:
            return 4000

    asked = issued()
    with pytest.raises(FailureError, match=r"2 steps of n = 16 need 0\.0 GB"):
        prover.commit(asked, Full(CPU.device))


def test_a_small_file_with_many_scans_costs_little_memory() -> None:
    """Before its first opening is judged, which is garbage: as many scans of as large matrices as may be asked for, and no more."""
    with pytest.raises(MisuseError, match="scans times n must be at most 16777216, not 129 times 131056"):
        issued(n=N_MOST, steps=1, openings=1, scans=129, scan_openings=1)
    asked = issued(n=N_MOST, steps=1, openings=1, scans=128, scan_openings=1)
    task, seed, roots = task_of(asked.params), challenge.seed(asked), ("ab" * 32,) * 129
    cells, scanned = bundle.cells(task, seed, roots, None), bundle.scan_cells(task, seed, roots, None)
    openings = bytes(sum(bundle.sizes(task, cells, scanned)))
    assert len(openings) < 1e6
    said = replace(
        answered(commit(issued()))[0],
        challenge=asked,
        commitment=roots[0],
        scan_roots=roots[1:],
        asked=None,
        openings_digest=hashlib.sha256(openings).hexdigest(),
    )
    found: list[str] = []
    assert peak_bytes(lambda: found.extend(f.what for f in faults_of(said, io.BytesIO(openings)))) < 30e6
    assert "of the first state is not the seed's" in found[0]


def test_as_many_roots_come_as_scans_were_asked_for() -> None:
    session = Session(issued(scans=2, scan_openings=1), at_s=0.0)
    session.committed("ab" * 32, at_s=1.0)
    session.scan_key(at_s=1.0)
    with pytest.raises(MisuseError, match="2 scans were asked for, 1 roots came"):
        session.scanned(("ab" * 32,), at_s=2.0)


def test_no_time_is_negative() -> None:
    transcript, openings = answered(commit(issued()))
    (fault,) = faults_of(replace(transcript, elapsed_s=-1.0), io.BytesIO(openings))
    assert (fault.path, fault.what) == ("$.elapsed_s", "is negative")


# --- what a stranger sends --------------------------------------------------------------------------------------------


def test_a_refused_answer_is_nobodys_whoever_signed_it(tmp_path: Path) -> None:
    keygen(tmp_path / "key")
    key = load_key(tmp_path / "key")
    transcript, openings = commit(issued()).transcript("ef" * 32, key)
    assert check(transcript, io.BytesIO(openings)).signed_by == key.public_hex
    assert check(transcript, io.BytesIO(bytes(len(openings)))).signed_by is None


def test_a_file_of_nothing_but_faults_is_told_eight_and_draws_no_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    transcript, openings = answered(commit(issued(openings=20)))
    wrong = bytes(len(openings))
    forged = replace(transcript, openings_digest=hashlib.sha256(wrong).hexdigest())
    monkeypatch.setattr(rows, "Projection", lambda *_: pytest.fail("what is wrong anyway cost a projection"))
    assert len(faults((forged, wrong))) == 8


def test_a_first_line_without_end_is_not_read() -> None:
    with pytest.raises(ForgeryError, match="no line within 262144 bytes"):
        open_file(io.BytesIO(b" " * (1 << 18) + b"\n"))


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_bounds_are_what_the_protocol_says() -> None:
    false = bounds.false_most_fraction(128)
    assert (1 - false) ** 128 == pytest.approx(0.1)
    assert (1 - bounds.false_most_fraction(128, grinding_bits=64)) ** 128 == pytest.approx(0.1 / 2**64)
    assert bounds.skipped_most_fraction(128) == 2 * false
    assert bounds.most_per_s(10.0, 2.0, 0.5) == pytest.approx(10 / 1.5)
    assert bounds.most_per_s(10.0, 2.0, None) is None
    assert bounds.most_per_s(10.0, 2.0, 2.0) is None  # the network alone would have taken all of it
    few = bounds.false_most_fraction(16)
    resident = partial(
        bounds.resident_fraction, link_bytes_per_s=64.0, rebuilt_bytes_per_s=30.0, openings=128, scan_openings=16
    )
    assert resident(3000.0) == pytest.approx(1 - 94 / 3000 - 2 * false - few)
    assert resident(10.0) == 0


def test_who_scans_as_slowly_as_it_works_has_kept_nothing() -> None:
    """It did the work again for each scan. And what is scanned in floats could be kept as what f holds, in fewer bits."""
    for mode, n in (("int8", 48), ("float16", 48)):
        asked = issued(mode=mode, n=n, steps=4, openings=256, scans=3, scan_openings=256)
        held = commit(asked)
        transcript, _ = held.transcript(None)
        for scans_s, kept in ((30.0, 0.0), (0.003, 1.0)):
            told = verifier.Clocked(wall_s=10.0, scans_s=scans_s, link_bytes_per_s=1.0)
            work = verifier._work(transcript, told)
            share = 1 - 3 * bounds.false_most_fraction(256)
            most = 4 * n * n * kept_fraction(task_of(asked.params)) * share * kept
            assert work.resident_bytes == pytest.approx(most, rel=0.01, abs=1)


@pytest.mark.parametrize("n", [16, 48, 256, 16_384])
def test_what_f_keeps_of_a_float_takes_as_many_bits_as_we_say(n: int) -> None:
    """Shannon's entropy of the codes of normal sums: the pad can be drawn again, and need not be kept."""
    y = np.random.default_rng(n).normal(0, math.sqrt(n), 400_000).astype(np.float32)
    counts = np.bincount(chain.kept("float16", n, y), minlength=256) / y.size
    bits = -(counts[counts > 0] * np.log2(counts[counts > 0])).sum()
    said = 8 * kept_fraction(task_of(issued(mode="float16", n=n).params))
    assert bits - 0.2 < said < bits
    assert kept_fraction(task_of(issued(n=n).params)) == 1


# --- files ------------------------------------------------------------------------------------------------------------


def test_an_answer_to_another_challenge_proves_nothing(tmp_path: Path) -> None:
    write(tmp_path / "transcript", *answered(commit(issued())))
    for name, asked in (("asked", issued()), ("other", issued(epoch=2))):
        (tmp_path / name).write_bytes(codec.encode(asked))
    good = by_file.check(tmp_path / "transcript", challenge=tmp_path / "asked")
    bad = by_file.check(tmp_path / "transcript", challenge=tmp_path / "other")
    assert good.accepted
    assert good.proven
    assert good.work
    assert (bad.accepted, bad.proven, bad.work) == (False, (), None)


def test_a_file_that_is_no_transcript_is_refused_not_raised(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    verdict = by_file.check(tmp_path / "junk")
    assert (verdict.accepted, verdict.digest, verdict.complete) == (False, None, False)
    assert "a transcript is a line of JSON" in verdict.faults[0].what


def test_a_challenge_in_a_file_is_in_range_before_it_is_answered(tmp_path: Path) -> None:
    params: dict[str, Any] = {**issued().params, "n": 17}
    (tmp_path / "challenge").write_bytes(codec.encode(replace(issued(), params=params)))
    with pytest.raises(MisuseError, match="multiple of 16"):
        by_file.read_challenge(tmp_path / "challenge", now=NOW)


def test_scans_are_opened_as_often_as_the_work(tmp_path: Path) -> None:
    made = by_file.challenge(device="CPU-1", out=tmp_path / "with", scans=3, openings=7)
    assert (made.params["scans"], made.params["scan_openings"]) == (3, 7)
    assert by_file.challenge(device="CPU-1", out=tmp_path / "without").params["scan_openings"] == 0


# --- audits -----------------------------------------------------------------------------------------------------------


def test_an_audit_of_a_report_names_the_outcome_that_is_another(tmp_path: Path) -> None:
    """A report of one kernel, its answers true, then one of them not: both verify, and the audit tells them apart."""
    from test_verify import head, job, measured, sealed

    from harness import registry
    from harness.cluster import replay
    from harness.device.cpu import CpuDevice
    from harness.measure.runner import answer_digest
    from harness.model import Device, Outcome

    bench, backend = (
        registry.find(["sha256"])[0],
        CpuDevice(Device(uuid="x", name="", kind="cpu", selector="", sensors={})),
    )
    jobs = [replace(job(n), benchmark="sha256", version=bench.version, params={"n": n}) for n in (64, 128, 192)]
    digests = [answer_digest(bench.build(backend, int(j.seed, 16), j.params).run(), backend) for j in jobs]

    def audited(told: list[str], name: str, *, flops: int = 0, **more: Any) -> Verdict:
        outcomes = [
            Outcome(measurement=replace(m, job=j, answer_digest=d, work=replace(m.work, flops=flops)))
            for j, d in zip(jobs, told, strict=True)
            if (m := measured(1).measurement)
        ]
        (tmp_path / name).write_bytes(codec.encode(sealed(head(plan=tuple(jobs)), outcomes)))
        return replay.audit(tmp_path / name, **more)

    true = audited(digests, "true")
    assert true.accepted
    assert sum("bit for bit" in what for what in true.proven) == 3
    false = audited([digests[0], "0" * 64, digests[2]], "false")
    assert (false.accepted, false.proven) == (False, ())
    assert [fault.path for fault in false.faults] == ["$.outcomes[1].measurement"]
    assert [w for w in audited(digests, "huge", flops=10**12).not_proven if "too much work" in w]
    drawn = {sum("bit for bit" in w for w in audited(digests, "some", count=1, seed=f"{i}").proven) for i in range(4)}
    assert drawn == {1}
    found = {audited([digests[0], "0" * 64, digests[2]], "some", count=1, seed=f"{i}").accepted for i in range(8)}
    assert found == {True, False}  # which one is drawn is the seed's to say


def test_an_audit_finds_no_fault_where_its_own_answers_decide_nothing() -> None:
    from test_verify import measured

    from harness.cluster import replay

    theirs = measured(1).measurement
    assert theirs is not None
    mine, other = theirs.answer_digest, "0" * 64
    assert replay._compared(theirs, [(mine, True, True), (other, True, True)]).proven
    assert replay._compared(theirs, [(other, True, True), (other, True, True)]).fault
    for answers, why in (
        ([(mine, True, True), (other, True, False)], "own answer does not pass"),
        ([(other, True, True), (other, False, True)], "floats"),
        ([(other, True, True), ("1" * 64, True, True)], "how many threads"),
    ):
        found = replay._compared(theirs, answers)
        assert why in str(found.open_question)
        assert not found.fault
