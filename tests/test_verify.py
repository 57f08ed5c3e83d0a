"""Seals, signatures, chains: whatever is done to a report, `verify` says so and names it."""

from __future__ import annotations

import itertools
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from harness import codec, stats
from harness.errors import ForgeryError, MisuseError
from harness.model import (
    Device,
    Environment,
    Failed,
    Interval,
    Job,
    Measurement,
    Node,
    Outcome,
    Report,
    Round,
    Seal,
    Skipped,
    Verdict,
    Work,
)
from harness.proof.seal import OPEN, assemble, head_digest, seal
from harness.proof.signing import Key, is_signed_by, keygen, load_key
from harness.proof.verify import job_of, judge_report, verify

CPU = Device(uuid="CPU-1", name="Example CPU", kind="cpu", selector="cpu", sensors={})
TIMES = ((1e-5, 1.1e-5), (1.2e-5, 1.05e-5), (1.01e-5, 1.02e-5))


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    path = tmp_path_factory.mktemp("keys") / "node.pem"
    keygen(path)
    return load_key(path)


def job(n: int, device: Device = CPU) -> Job:
    return Job(benchmark="stream", version=1, params={"n": n}, device_uuid=device.uuid, seed="0123456789abcdef")


def measured(n: int, times: Sequence[Sequence[float]] = TIMES, device: Device = CPU) -> Outcome:
    """Make an outcome whose interval follows from its raw times."""
    centre, low, high = stats.interval(stats.medians(times))
    return Outcome(
        measurement=Measurement(
            job=job(n, device),
            started_at="2026-11-24T12:00:00Z",
            elapsed_s=0.5,
            work=Work(bytes_moved=24 * n),
            metric="bandwidth",
            state="valid",
            reason="",
            time_s=centre,
            interval=Interval(low_s=max(low, min(map(min, times))), high_s=high, confidence_fraction=stats.CONFIDENCE),
            warmup_times_s=(),
            rounds=tuple(Round(at_s=0.1 * i, batch=1, times_s=tuple(t)) for i, t in enumerate(times)),
            telemetry=(),
            telemetry_lost=None,
            answer_digest="ab" * 32,
        )
    )


def head(*, plan: tuple[Job, ...], node: str = "node", previous: str | None = None, device: Device = CPU) -> Report:
    return Report(
        schema="harness.report/2",
        created_at="2026-11-24T12:00:00Z",
        sealed_at="2026-11-24T12:01:00Z",
        node=Node(name=node),
        environment=Environment(
            harness_version="0.1.0",
            python="3.11.9",
            os="Linux",
            packages={},
            cpu_limit_count=2,
            niceness=0,
            load_average_1min=None,
            memory_free_bytes=None,
            governor=None,
        ),
        devices=(device,),
        preflight=(),
        emulated=device.emulated,
        preset="quick",
        seed="00",
        plan=plan,
        outcomes=(),
        previous=previous,
        seal=OPEN,
    )


OUTCOMES = (measured(1), measured(2), Outcome(skipped=Skipped(job=job(3), reason="needs 24 GB")))
PLAN = (job(1), job(2), job(3))


def sealed(report: Report, outcomes: Sequence[Outcome] = OUTCOMES, key: Key | None = None) -> Report:
    """Seal a report as an honest node would, whatever it holds."""
    closed = seal(report, [codec.digest(o) for o in outcomes], key)
    return replace(closed, outcomes=tuple(outcomes))


def honest(key: Key | None = None, *, previous: str | None = None, node: str = "node") -> Report:
    return sealed(head(plan=PLAN, previous=previous, node=node), key=key)


def faults(report: Report, signer: str | None = None) -> list[tuple[str, str]]:
    verdict = judge_report(report, "report", signer=signer)
    assert verdict.accepted == (not verdict.faults)
    assert not (verdict.faults and verdict.proven)
    return [(fault.path, fault.what) for fault in verdict.faults]


def judged(folder: Path, *reports: Report | bytes, signer: str | None = None) -> tuple[Verdict, ...]:
    files = []
    for i, report in enumerate(reports):
        file = folder / f"{i}.json"
        file.write_bytes(report if isinstance(report, bytes) else codec.encode(report))
        files.append(file)
    return verify(*files, signer=signer)


# --- what holds -------------------------------------------------------------------------------------------------------


def test_an_honest_unsigned_report_is_accepted_and_says_what_it_does_not_prove(tmp_path: Path) -> None:
    (verdict,) = judged(tmp_path, honest())
    assert (verdict.accepted, verdict.complete, verdict.signed_by, verdict.faults) == (True, True, None, ())
    assert "no byte was changed since it was sealed" in verdict.proven
    assert any("unsigned" in what for what in verdict.not_proven)
    assert verdict.digest == honest().seal.digest


def test_an_honest_signed_report_is_accepted_with_its_signer(tmp_path: Path, key: Key) -> None:
    (verdict,) = judged(tmp_path, honest(key), signer=key.public_hex)
    assert (verdict.accepted, verdict.signed_by) == (True, key.public_hex)
    assert f"signed by {key.public_hex}" in verdict.proven
    assert not any("unsigned" in what for what in verdict.not_proven)


def test_without_a_key_the_report_says_unsigned() -> None:
    assert honest().seal.algorithm == "unsigned"
    assert (honest().seal.public_key, honest().seal.signature) == (None, None)


def test_an_incomplete_report_is_accepted_and_says_so() -> None:
    report = sealed(head(plan=PLAN), OUTCOMES[:1])
    verdict = judge_report(report, "report")
    assert (verdict.accepted, verdict.complete) == (True, False)
    assert "what 2 of 3 planned jobs would have given" in verdict.not_proven


@pytest.mark.parametrize("count", range(4))
@pytest.mark.parametrize("signed", [False, True])
def test_assembled_bytes_are_those_of_the_whole_report(count: int, signed: bool, key: Key) -> None:
    outcomes = OUTCOMES[:count]
    whole = sealed(head(plan=PLAN), outcomes, key if signed else None)
    assert assemble(replace(whole, outcomes=()), [codec.encode(o) for o in outcomes]) == codec.encode(whole)


def test_a_name_that_looks_like_the_gap_does_not_divert_the_outcomes() -> None:
    whole = sealed(head(plan=PLAN, node='"outcomes":[]'))
    assert assemble(whole, [codec.encode(o) for o in OUTCOMES]) == codec.encode(whole)


# --- one byte ---------------------------------------------------------------------------------------------------------


def neighbours(byte: int) -> Iterator[int]:
    """Yield other bytes that a forger would try first: another digit, the other case, a neighbour in the code."""
    char = chr(byte)
    if char.isdigit():
        yield ord("0") + (byte - ord("0") + 1) % 10
        yield ord("a")
    if char.isalpha():
        yield ord(char.swapcase())
        yield ord("f") if char != "f" else ord("e")
    yield byte ^ 1
    yield ord(" ") if char != " " else ord("_")


@pytest.mark.slow
@pytest.mark.parametrize("signed", [False, True])
def test_one_changed_byte_anywhere_is_refused(signed: bool, key: Key) -> None:
    outcome = measured(1, [TIMES[0], TIMES[1]])
    report = sealed(head(plan=(job(1),), previous="cd" * 32), [outcome], key if signed else None)
    data = codec.encode(report)
    assert judge_report(codec.decode(data, Report), "report").accepted
    for at, byte in enumerate(data):
        # Each byte is changed; each in three in every way, and the two cases between them change two in three so.
        for other in {byte ^ 1} if at % 3 != signed else set(neighbours(byte)) - {byte}:
            forged = data[:at] + bytes([other]) + data[at + 1 :]
            try:
                verdict = judge_report(codec.decode(forged, Report), "report")
            except ForgeryError:
                continue
            assert not verdict.accepted, (at, data[max(at - 30, 0) : at + 30], chr(other))
            assert all(fault.path.startswith("$") and fault.what for fault in verdict.faults)


@pytest.mark.slow
def test_one_byte_more_or_less_anywhere_is_refused(key: Key) -> None:
    data = codec.encode(sealed(head(plan=(job(1),)), [measured(1)], key))
    for at in range(len(data)):
        forged = data[:at] + (data[at + 1 :] if at % 2 else data[at : at + 1] + data[at:])
        try:
            assert not judge_report(codec.decode(forged, Report), "report").accepted, at
        except ForgeryError:
            continue


# --- outcomes ---------------------------------------------------------------------------------------------------------


def test_a_changed_outcome_is_named_by_its_index() -> None:
    report = honest()
    for i in range(2):
        forged = list(report.outcomes)
        forged[i] = measured(i + 1, [[t * 0.9 for t in times] for times in TIMES])
        assert faults(replace(report, outcomes=tuple(forged))) == [
            (f"$.outcomes[{i}]", "was changed after it was sealed")
        ]


def test_a_removed_outcome_is_named_by_its_place_in_the_seal() -> None:
    report = honest()
    for i in range(3):
        kept = tuple(o for k, o in enumerate(report.outcomes) if k != i)
        removed = f"outcome {i} of the seal ({report.seal.outcomes[i][:8]}) was removed"
        assert faults(replace(report, outcomes=kept)) == [("$.outcomes", removed)]


def test_all_outcomes_removed_are_all_named() -> None:
    assert len(faults(replace(honest(), outcomes=()))) == 3


def test_an_added_outcome_is_named_by_its_index() -> None:
    report = sealed(head(plan=PLAN), OUTCOMES[:2])
    assert faults(replace(report, outcomes=OUTCOMES)) == [("$.outcomes[2]", "is not in the seal: added or changed")]


def test_an_outcome_that_stands_twice_is_named_by_its_index() -> None:
    report = honest()
    twice = (*report.outcomes, report.outcomes[0])
    assert ("$.outcomes[3]", "an outcome stands twice") in faults(replace(report, outcomes=twice))


def test_a_seal_that_names_an_outcome_twice_is_named() -> None:
    report = sealed(head(plan=PLAN))
    double = replace(report, seal=replace(report.seal, outcomes=(*report.seal.outcomes, report.seal.outcomes[0])))
    assert ("$.seal.outcomes", "an outcome stands twice") in faults(double)


def test_an_outcome_put_in_place_of_another_is_named_by_its_index() -> None:
    report = honest()
    forged = replace(report, outcomes=(report.outcomes[0], report.outcomes[0], report.outcomes[2]))
    assert ("$.outcomes[1]", "was changed after it was sealed") in faults(forged)


def test_outcomes_in_another_order_are_named_by_the_first_that_moved() -> None:
    report = honest()
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2):
            moved = replace(report, outcomes=tuple(report.outcomes[i] for i in order))
            first = next(i for i, k in enumerate(order) if i != k)
            assert faults(moved) == [(f"$.outcomes[{first}]", "the outcomes were put in another order")]


@pytest.mark.parametrize(
    "change",
    [
        lambda r: replace(r, preset="full"),
        lambda r: replace(r, node=Node(name="other")),
        lambda r: replace(r, devices=(replace(CPU, name="NVIDIA H100 80GB HBM3"),)),
        lambda r: replace(r, created_at="2026-11-25T12:00:00Z"),
        lambda r: replace(r, plan=(*r.plan, job(4))),
        lambda r: replace(r, previous="0" * 64),
        lambda r: replace(r, seal=replace(r.seal, digest="0" * 64)),
    ],
)
def test_a_changed_head_is_named(change: Callable[[Report], Report]) -> None:
    assert [path for path, _ in faults(change(honest()))] == ["$.seal.digest"]


# --- signatures -------------------------------------------------------------------------------------------------------


def resealed(report: Report, seal_: Seal) -> Report:
    """Put another seal on a report, with the digest that a forger would compute for it."""
    drafted = replace(report, seal=seal_)
    return replace(drafted, seal=replace(seal_, digest=head_digest(drafted)))


def test_a_stripped_signature_is_named(key: Key) -> None:
    report = honest(key)
    assert [path for path, _ in faults(replace(report, seal=replace(report.seal, signature=None)))] == [
        "$.seal.signature"
    ]
    unsigned = replace(report.seal, algorithm="unsigned")
    assert [p for p, _ in faults(resealed(report, unsigned))] == ["$.seal.algorithm"]


def test_a_report_made_unsigned_is_whole_but_signed_by_nobody(key: Key) -> None:
    report = honest(key)
    bare = resealed(report, replace(report.seal, algorithm="unsigned", public_key=None, signature=None))
    assert faults(bare) == []
    ((path, what),) = faults(bare, signer=key.public_hex)
    assert (path, what) == ("$.seal.public_key", f"signed by nobody, not by {key.public_hex}")


def test_a_signature_by_another_key_is_named_and_names_no_signer(key: Key) -> None:
    report, other = honest(key), Key(ed25519.Ed25519PrivateKey.generate())
    forged = replace(report, seal=replace(report.seal, signature=other.sign(report.seal.digest)))
    assert [path for path, _ in faults(forged)] == ["$.seal.signature"]
    assert judge_report(forged, "report").signed_by is None


def test_a_report_signed_anew_is_refused_where_the_signer_is_known(key: Key) -> None:
    other = Key(ed25519.Ed25519PrivateKey.generate())
    taken = honest(other)
    assert faults(taken) == []
    ((path, what),) = faults(taken, signer=key.public_hex)
    assert (path, what) == ("$.seal.public_key", f"signed by {other.public_hex}, not by {key.public_hex}")


def test_a_signature_of_something_else_is_refused(key: Key) -> None:
    report = honest(key)
    assert report.seal.signature is not None
    assert is_signed_by(key.public_hex, report.seal.digest, report.seal.signature)
    assert not is_signed_by(key.public_hex, "0" * 64, report.seal.signature)
    assert not is_signed_by(key.public_hex, report.seal.digest, report.seal.signature.upper())
    assert not is_signed_by("0" * 63, report.seal.digest, report.seal.signature)
    assert not is_signed_by("f" * 64, report.seal.digest, report.seal.signature)  # no point of the curve


@pytest.mark.parametrize("signer", ["", "AB" * 32, "ab" * 31, "ab" * 32 + "\n", "xyz"])
def test_a_signer_that_is_no_key_is_misuse(signer: str) -> None:
    with pytest.raises(MisuseError, match="is not a public key: 64 lower-case hex digits"):
        verify("report.json", signer=signer)


# --- chains -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    path = tmp_path_factory.mktemp("keys") / "other.pem"
    keygen(path)
    return load_key(path)


@pytest.fixture(scope="module")
def chain(key: Key) -> tuple[Report, ...]:
    first = honest(key)
    second = honest(key, previous=first.seal.digest)
    return first, second, honest(key, previous=second.seal.digest)


def test_an_unbroken_chain_is_accepted(tmp_path: Path, chain: Sequence[Report]) -> None:
    assert [v.accepted for v in judged(tmp_path, *chain)] == [True, True, True]
    assert [v.accepted for v in judged(tmp_path, *chain[1:])] == [True, True]


def test_two_reports_swapped_in_a_chain_are_named(tmp_path: Path, chain: Sequence[Report]) -> None:
    first, second, third = chain
    verdicts = judged(tmp_path, second, first, third)
    assert [v.accepted for v in verdicts] == [True, False, False]
    (fault,) = verdicts[1].faults
    assert fault.path == "$.previous"
    assert fault.what == (
        f"the chain is broken: it follows no report, but the report before it here, {tmp_path / '0.json'}, "
        f"is {second.seal.digest[:8]}: one is missing or they are out of order"
    )


def test_a_missing_link_is_named(tmp_path: Path, chain: Sequence[Report]) -> None:
    verdicts = judged(tmp_path, chain[0], chain[2])
    assert [[f.path for f in v.faults] for v in verdicts] == [[], ["$.previous"]]


def test_a_report_given_twice_breaks_the_chain(tmp_path: Path, chain: Sequence[Report]) -> None:
    assert [v.accepted for v in judged(tmp_path, chain[0], chain[0])] == [True, False]


def test_a_file_that_is_no_report_hides_no_gap(tmp_path: Path, chain: Sequence[Report]) -> None:
    verdicts = judged(tmp_path, chain[0], b"{}", chain[2])
    assert [v.accepted for v in verdicts] == [True, False, False]
    assert verdicts[1].digest is None


def test_reports_of_two_nodes_are_two_chains(tmp_path: Path, chain: Sequence[Report]) -> None:
    other = honest(node="other")
    assert all(v.accepted for v in judged(tmp_path, chain[0], other, chain[1]))


def test_two_owners_who_call_their_nodes_the_same_have_two_chains(
    tmp_path: Path, chain: Sequence[Report], other_key: Key
) -> None:
    mine, theirs = chain[0], honest(other_key)
    assert mine.node.name == theirs.node.name
    next_of_theirs = honest(other_key, previous=theirs.seal.digest)
    assert all(v.accepted for v in judged(tmp_path, mine, theirs, honest(), chain[1], next_of_theirs))
    borrowed = replace(theirs, seal=replace(theirs.seal, public_key=mine.seal.public_key))  # of whom it is not
    assert [v.accepted for v in judged(tmp_path, mine, borrowed, chain[1])] == [True, False, True]


def test_nodes_of_a_fleet_signed_with_one_key_are_a_chain_each(
    tmp_path: Path, chain: Sequence[Report], key: Key
) -> None:
    assert all(v.accepted for v in judged(tmp_path, chain[0], honest(key, node="other"), chain[1]))


def test_a_report_left_out_shows_behind_a_new_name(tmp_path: Path, chain: Sequence[Report], key: Key) -> None:
    renamed = honest(key, node="new name", previous=chain[1].seal.digest)
    before, after = judged(tmp_path, chain[0], renamed)
    assert f"it follows {chain[1].seal.digest[:8]}, which is not given" in after.not_proven[-1]
    assert not any("left out" in doubt for doubt in (*before.not_proven, *judged(tmp_path, *chain)[2].not_proven))


# --- contents: a seal does not make them true ---------------------------------------------------------------------------


def shifted(outcome: Outcome, **fields: object) -> Outcome:
    assert outcome.measurement
    return Outcome(measurement=replace(outcome.measurement, **fields))  # type: ignore[arg-type]


def raw(*times: tuple[float, ...]) -> Outcome:
    """Make an outcome of these raw times, with the interval of others."""
    return shifted(measured(1), rounds=tuple(Round(at_s=0.0, batch=1, times_s=t) for t in times))


def contents(*outcomes: Outcome, plan: tuple[Job, ...] | None = None, device: Device = CPU) -> list[tuple[str, str]]:
    """Return the faults of a report that is sealed over whatever it holds."""
    return faults(sealed(head(plan=plan or (job(1),), device=device), outcomes))


@pytest.mark.parametrize(
    "fields",
    [
        {"time_s": 9e-6},
        {"interval": Interval(low_s=1e-5, high_s=1e-5, confidence_fraction=0.95)},
        {"interval": Interval(low_s=1e-6, high_s=1.3e-5, confidence_fraction=0.95)},
    ],
)
def test_an_interval_that_does_not_follow_from_the_raw_times_is_named(fields: dict[str, object]) -> None:
    ((path, what),) = contents(shifted(measured(1), **fields))
    assert path == "$.outcomes[0].measurement.interval"
    assert "its raw times give" in what


def test_a_confidence_other_than_the_one_computed_is_named() -> None:
    m = measured(1).measurement
    assert m
    bold = shifted(Outcome(measurement=m), interval=replace(m.interval, confidence_fraction=0.999))
    assert [path for path, _ in contents(bold)] == ["$.outcomes[0].measurement.interval"]


@pytest.mark.parametrize("time", [0.0, -1e-5, 5e-324, 1e300, 1e308])
def test_a_time_that_nobody_measured_is_named(time: float) -> None:
    ((path, what),) = contents(raw((1e-5, time), (1e-5,)))
    assert path == "$.outcomes[0].measurement.rounds"
    assert what.startswith("a time that is not positive")


@pytest.mark.parametrize("outcome", [raw(), raw(()), raw((1e-5,), ())])
def test_a_round_without_times_is_named(outcome: Outcome) -> None:
    assert contents(outcome) == [("$.outcomes[0].measurement.rounds", "a round without times")]


@pytest.mark.parametrize("work", [Work(), Work(bytes_moved=-8), Work(flops=9)])
def test_work_that_is_none_of_its_metric_is_named(work: Work) -> None:
    ((path, what),) = contents(shifted(measured(1), work=work))
    assert path == "$.outcomes[0].measurement.work"
    assert what == "no work of the kind that its metric, bandwidth, counts"


def test_a_job_planned_twice_is_named() -> None:
    assert ("$.plan", "a job is planned twice") in contents(measured(1), plan=(job(1), job(1)))


def test_an_outcome_that_was_not_planned_is_named() -> None:
    ((path, what),) = contents(measured(2))
    assert (path, what) == ("$.outcomes[0]", "stream with these parameters was not planned")


def test_a_second_outcome_of_one_job_is_named() -> None:
    again = measured(1, [[2e-5], [2e-5], [2.1e-5]])
    ((path, what),) = contents(measured(1), again, plan=(job(1), job(2)))
    assert (path, what) == ("$.outcomes[1]", "a second outcome of one job (stream)")


def test_a_foreign_device_is_named() -> None:
    other = replace(CPU, uuid="CPU-2")
    assert contents(measured(1, device=other), plan=(job(1, other),)) == [
        ("$.outcomes[0]", "device CPU-2 is not among the report's devices")
    ]


def test_a_device_listed_twice_is_named() -> None:
    report = sealed(replace(head(plan=PLAN), devices=(CPU, CPU)))
    assert faults(report) == [("$.devices", "a device is listed twice")]


@pytest.mark.parametrize("emulated", [False, True])
def test_an_emulated_device_that_the_report_hides_is_named(emulated: bool) -> None:
    device = replace(CPU, emulated=emulated)
    report = sealed(replace(head(plan=PLAN, device=device), emulated=not emulated))
    assert faults(report) == [("$.emulated", "does not agree with the devices")]


def test_an_emulated_report_is_accepted_as_that() -> None:
    verdict = judge_report(sealed(head(plan=PLAN, device=replace(CPU, emulated=True))), "report")
    assert verdict.accepted
    assert "that it ran on a GPU: the device is emulated" in verdict.not_proven


def test_an_outcome_holds_exactly_one_result() -> None:
    m = measured(1).measurement
    failed = Failed(job=job(1), started_at="", elapsed_s=0.0, outcome="crashed", reason="")
    for outcome in (Outcome(), Outcome(measurement=m, failed=failed)):
        assert job_of(outcome) is None
        assert contents(outcome) == [("$.outcomes[0]", "must hold exactly one of measurement, skipped and failed")]
    assert job_of(Outcome(failed=failed)) == job(1)


def test_every_fault_of_a_report_is_named_not_only_the_first() -> None:
    bad = shifted(raw((0.0,)), work=Work())
    assert {path.rpartition(".")[2] for path, _ in contents(bad, measured(2))} == {"work", "rounds", "outcomes[1]"}


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_report_is_refused_with_the_path_of_its_fault(tmp_path: Path) -> None:
    text = json.loads(codec.encode(honest()))
    text["plan"][0]["seed"] = 7
    (verdict,) = judged(tmp_path, json.dumps(text).encode())
    assert not verdict.accepted
    assert [(f.path, f.what) for f in verdict.faults] == [("$.plan[0].seed", "expected `str`, got `int`")]


def test_nothing_to_verify_is_misuse(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="no report to verify was given"):
        verify()
    with pytest.raises(MisuseError, match="cannot read"):
        verify(tmp_path / "missing.json")


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_file_is_its_owners_alone_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "node.pem"
    before = os.umask(0)
    try:
        public = keygen(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(path).public_hex == public
    assert len(public) == 64


def test_a_key_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "node.pem"
    keygen(path)
    before = path.read_bytes()
    with pytest.raises(MisuseError, match=r"node\.pem' exists and is not written over; choose another name"):
        keygen(path)
    assert path.read_bytes() == before


def test_a_link_to_nowhere_is_not_followed_to_write_a_key(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MisuseError, match="exists and is not written over"):
        keygen(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("out", ["/proc/key.pem", "/nosuch/folder/key.pem", ""])
def test_a_key_that_cannot_be_written_is_misuse(out: str) -> None:
    with pytest.raises(MisuseError, match="cannot write a key to"):
        keygen(out)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "node.pem"
    keygen(path)
    path.chmod(mode)
    with pytest.raises(MisuseError, match=rf"can be read by others \(mode {mode:04o}\): chmod 600 .*node\.pem"):
        load_key(path)


def private_key_file(path: Path, data: bytes) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "data", [b"", b"secret", b"\xff\x00", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_garbage_is_no_key(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(MisuseError, match="is not a key made by `harness keygen`"):
        load_key(private_key_file(tmp_path / "key.pem", data))


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    plain = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for other in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())):
        with pytest.raises(MisuseError, match="another kind of key than Ed25519; make one with `harness keygen`"):
            load_key(private_key_file(tmp_path / "key.pem", other.private_bytes(*plain)))


def test_a_key_with_a_password_is_refused(tmp_path: Path) -> None:
    secret = ed25519.Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")
    )
    with pytest.raises(MisuseError, match="is not a key made by `harness keygen`"):
        load_key(private_key_file(tmp_path / "key.pem", secret))


def test_a_key_that_is_not_there_is_misuse(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="cannot read the key"):
        load_key(tmp_path / "missing.pem")
    with pytest.raises(MisuseError, match="cannot read the key"):
        load_key(tmp_path)
