"""Canonical bytes: RFC 8785 to the letter, one spelling only, and no document that hangs or crashes its reader."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import time
import types
import typing
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from harness import codec, model
from harness.errors import FailureError, ForgeryError, MisuseError
from harness.model import (
    CostLine,
    Device,
    Environment,
    Interval,
    Job,
    Measurement,
    Node,
    Outcome,
    Param,
    Quote,
    Report,
    Round,
    Seal,
    TelemetrySample,
    Work,
)

T = TypeVar("T")

SAFE = 2**53 - 1
AT_ONCE_S = 5.0  # generous: these take milliseconds on a quiet machine
RECORDS = [kind for kind in map(model.__dict__.get, model.__all__) if isinstance(kind, type)]

JOB = Job(
    benchmark="stream", version=1, params={"n": 4096, "op": "triad"}, device_uuid="CPU-1", seed="0123456789abcdef"
)
MEASUREMENT = Measurement(
    job=JOB,
    started_at="2026-11-24T12:00:00Z",
    elapsed_s=1.5,
    work=Work(bytes_moved=98304),
    metric="bandwidth",
    state="valid",
    reason="±0.1 % over 5 rounds",
    time_s=2.5e-05,
    interval=Interval(low_s=2.4e-05, high_s=2.6e-05, confidence_fraction=0.95),
    warmup_times_s=(3e-05,),
    rounds=(Round(at_s=0.0, batch=1, times_s=(2.5e-05, 2.5e-05)), Round(at_s=0.5, batch=1, times_s=(2.5e-05,))),
    telemetry=(TelemetrySample(at_s=0.25, power_w=55.5, throttle_reasons=("sw_power_cap",)),),
    telemetry_lost=None,
    answer_digest="a" * 64,
)
REPORT = Report(
    schema="harness.report/2",
    created_at="2026-11-24T12:00:00Z",
    sealed_at="2026-11-24T12:01:00Z",
    node=Node(name="node"),
    environment=Environment(
        harness_version="0.1.0",
        python="3.11.9",
        os="Linux",
        packages={"numpy": "2.2.0"},
        cpu_limit_count=2,
        niceness=0,
        load_average_1min=0.25,
        memory_free_bytes=1 << 33,
        governor=None,
    ),
    devices=(Device(uuid="CPU-1", name="Example CPU", kind="cpu", selector="cpu", sensors={"energy": "ok"}),),
    preflight=(),
    emulated=False,
    preset="quick",
    seed="00",
    plan=(JOB,),
    outcomes=(Outcome(measurement=MEASUREMENT),),
    previous=None,
    seal=Seal(outcomes=("0" * 64,), digest="1" * 64, algorithm="unsigned", public_key=None, signature=None),
)
BYTES = codec.encode(REPORT)


def changed(old: bytes, new: bytes) -> bytes:
    assert BYTES.count(old) >= 1, old
    return BYTES.replace(old, new, 1)


def refusal(data: bytes, kind: type = Report) -> ForgeryError:
    with pytest.raises(ForgeryError) as caught:
        codec.decode(data, kind)
    return caught.value


# --- canonical bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "text"),
    [  # RFC 8785, appendix B: IEEE 754 bits and how they are written
        (0x0000000000000000, "0"),
        (0x8000000000000000, "0"),
        (0x0000000000000001, "5e-324"),
        (0x8000000000000001, "-5e-324"),
        (0x7FEFFFFFFFFFFFFF, "1.7976931348623157e+308"),
        (0xFFEFFFFFFFFFFFFF, "-1.7976931348623157e+308"),
        (0x4340000000000000, "9007199254740992"),
        (0xC340000000000000, "-9007199254740992"),
        (0x4430000000000000, "295147905179352830000"),
        (0x44B52D02C7E14AF5, "9.999999999999997e+22"),
        (0x44B52D02C7E14AF6, "1e+23"),
        (0x44B52D02C7E14AF7, "1.0000000000000001e+23"),
        (0x444B1AE4D6E2EF4E, "999999999999999700000"),
        (0x444B1AE4D6E2EF4F, "999999999999999900000"),
        (0x444B1AE4D6E2EF50, "1e+21"),
        (0x3EB0C6F7A0B5ED8C, "9.999999999999997e-7"),
        (0x3EB0C6F7A0B5ED8D, "0.000001"),
        (0x41B3DE4355555553, "333333333.3333332"),
        (0x41B3DE4355555554, "333333333.33333325"),
        (0x41B3DE4355555555, "333333333.3333333"),
        (0x41B3DE4355555556, "333333333.3333334"),
        (0x41B3DE4355555557, "333333333.33333343"),
        (0xBECBF647612F3696, "-0.0000033333333333333333"),
        (0x43143FF3C1CB0959, "1424953923781206.2"),
    ],
)
def test_a_number_is_written_as_the_rfc_writes_it(bits: int, text: str) -> None:
    (value,) = struct.unpack(">d", bits.to_bytes(8, "big"))
    assert codec.encode(value) == text.encode()
    again: float = codec.decode(text.encode(), float)
    assert (again, math.copysign(1, again)) == (value, math.copysign(1, value or 0.0))  # a negative zero loses its sign


def test_keys_are_sorted_by_utf_16_units() -> None:
    # RFC 8785, section 3.2.3: the emoji, a surrogate pair, comes before a letter with a higher code unit.
    names = {
        "\u20ac": "Euro",
        "\r": "Return",
        "\ufb33": "Dalet",
        "1": "One",
        "\U0001f600": "Grin",
        "\x80": "Control",
        "ö": "O",
    }
    text = '{"\\r":"Return","1":"One","\x80":"Control","ö":"O","€":"Euro","😀":"Grin","\ufb33":"Dalet"}'
    assert codec.encode(names) == text.encode()
    assert codec.decode(text.encode(), dict[str, str]) == names


def test_a_string_escapes_what_it_must_and_nothing_else() -> None:
    assert codec.encode('€$\x0f\nA\'B"\\\\"/\x7f') == '"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/\x7f"'.encode()


def test_literals_are_their_own_form() -> None:
    assert codec.encode([None, True, False, []]) == b"[null,true,false,[]]"


def test_money_is_text() -> None:
    line = CostLine(name="power", usd_per_hour=Decimal("0.10"), basis="given")
    assert codec.encode(line) == b'{"basis":"given","name":"power","usd_per_hour":"0.10"}'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2**53, -(2**53), Decimal("NaN"), "\ud800"])
def test_what_json_cannot_carry_is_not_encoded(value: object) -> None:
    with pytest.raises(FailureError, match=r"^cannot encode a dict: "):
        codec.encode({"a": [value]})


def test_a_refused_number_is_named_by_its_path() -> None:
    with pytest.raises(FailureError, match=r"\$\.times_s\[1\]: nan is not a finite number"):
        codec.encode(Round(at_s=0.0, batch=1, times_s=(1.0, math.nan)))


def test_a_digest_is_that_of_the_bytes() -> None:
    assert codec.digest(REPORT) == codec.digest(BYTES)
    assert codec.digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- there and back ---------------------------------------------------------------------------------------------------


def values(annotation: Any) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - one a kind of type
    """Make values of an annotation as the model uses them, within what JSON carries."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return records(typing.cast("type", annotation))
    if annotation == Param:  # a whole float of 2**53 or more would come back as an integer that is not exact
        return st.integers(-SAFE, SAFE) | st.floats(-SAFE, SAFE) | st.text(max_size=8)
    if origin is Literal:
        return st.sampled_from(args)
    if origin in {Union, types.UnionType}:
        return st.one_of(*map(values, args))
    if origin is tuple:
        return st.lists(values(args[0]), max_size=2).map(tuple)
    if origin is Mapping:
        return st.dictionaries(st.text(max_size=8), values(args[1]), max_size=2)
    return {
        bool: st.booleans(),
        int: st.integers(-SAFE, SAFE),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(max_size=8),
        Decimal: st.decimals(allow_nan=False, allow_infinity=False),
        type(None): st.none(),
    }[annotation]


def records(kind: type[T]) -> st.SearchStrategy[T]:
    return st.builds(kind, **{name: values(hint) for name, hint in typing.get_type_hints(kind).items()})


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_record_survives_the_wire(kind: type) -> None:
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(records(kind))
    def check(record: object) -> None:
        data = codec.encode(record)
        again: object = codec.decode(data, kind)
        assert again == record
        assert codec.encode(again) == data

    check()


@pytest.mark.parametrize("number", [5e-324, 1e20, 1e21, 1e300, 0.1, -1.5])
def test_a_float_field_holds_any_finite_number(number: float) -> None:
    sample = TelemetrySample(at_s=number)
    assert codec.decode(codec.encode(sample), TelemetrySample) == sample


# --- refusals ---------------------------------------------------------------------------------------------------------

ROUND = "$.outcomes[0].measurement.rounds[0]"


@pytest.mark.parametrize(
    ("old", "new", "path", "what"),
    [
        (b'{"created_at"', b'{"aaa":1,"created_at"', "$.aaa", "unknown field"),
        (b'"batch":1', b'"at":2,"batch":1', f"{ROUND}.at", "unknown field"),
        (b'"batch":1', b'"a b":2,"batch":1', f'{ROUND}["a b"]', "unknown field"),
        (b'{"created_at"', b'{"\\u001b[31m":1,"created_at"', '$["\\u001b[31m"]', "unknown field"),
        (b'{"created_at"', b'{"aaa":1e999,"created_at"', "$.aaa", "unknown field"),
        (b'{"created_at"', b'{"aaa":1' + b"0" * 5000 + b',"created_at"', "$.aaa", "unknown field"),
        (b'"batch":1', b'"batch":1,"batch":1', f"{ROUND}.batch", "the key appears twice"),
        (b'"batch":1', b'"batch":2,"batch":1', f"{ROUND}.batch", "the key appears twice"),
        (b'"n":4096', b'"n":4096,"n":4096', "$.outcomes[0].measurement.job.params.n", "the key appears twice"),
        (b'{"created_at"', b'{"a":{"b":[{},{"c":1,"c":2}]},"created_at"', "$.a.b[1].c", "the key appears twice"),
        (b'"preset":"quick",', b"", "$.preset", "missing field"),
        (b'"previous":null,', b"", "$.previous", "missing field"),
        (b'"isa":[],', b"", "$.devices[0].isa", "missing field"),
        (b'"batch":1', b'"batch":1.0', f"{ROUND}.batch", "expected `int`, got `float`"),
        (b'"batch":1', b'"batch":1e0', f"{ROUND}.batch", "expected `int`, got `float`"),
        (b'"batch":1', b'"batch":true', f"{ROUND}.batch", "expected `int`, got `bool`"),
        (b'"batch":1', b'"batch":"1"', f"{ROUND}.batch", "expected `int`, got `str`"),
        (b'"preset":"quick"', b'"preset":null', "$.preset", "expected `str`, got `null`"),
        (b'"plan":[{', b'"plan":[[],{', "$.plan[0]", "expected `object`, got `array`"),
        (b"harness.report/2", b"harness.report/3", "$.schema", "invalid enum value 'harness.report/3'"),
        (b'"n":4096', b'"n":true', "$.outcomes[0].measurement.job.params.n", "got `bool`"),
        (b'"n":4096', b'"m":1,"n":{"o":[]}', "$.outcomes[0].measurement.job.params.n", "got `object`"),
        (b'"n":4096', b'"m":"a","n":null', "$.outcomes[0].measurement.job.params.n", "got `null`"),
        (b'"n":4096', b'"m":4,"n":1e999', "$.outcomes[0].measurement.job.params[...]", "out of range"),
        (b'"n":4096', b'"m":4,"n":1' + b"0" * 5000, "$.outcomes[0].measurement.job.params[...]", "out of range"),
        (b'"numpy":"2.2.0"', b'"a":"","n-p":2', '$.environment.packages["n-p"]', "expected `str`, got `int`"),
        (b'"numpy":"2.2.0"', b'"a":"","b":2.5', "$.environment.packages.b", "expected `str`, got `float`"),
        (b'"energy":"ok"', b'"a":"ok","energy":"fine"', "$.devices[0].sensors.energy", "invalid enum value 'fine'"),
        (b'"n":4096', b'"n":4096.0', "$.outcomes[0].measurement.job.params.n", "second spelling: 4096.0"),
        (b'"elapsed_s":1.5', b'"elapsed_s":1.50', "$.outcomes[0].measurement.elapsed_s", "second spelling"),
        (b'"elapsed_s":1.5', b'"elapsed_s":15e-1', "$.outcomes[0].measurement.elapsed_s", "second spelling"),
        (b'"at_s":0,', b'"at_s":0.0,', f"{ROUND}.at_s", "second spelling: 0.0"),
        (b'"at_s":0,', b'"at_s":-0,', f"{ROUND}.at_s", "second spelling"),
        (b'"at_s":0,', b'"at_s":-0.0,', f"{ROUND}.at_s", "second spelling: -0.0"),
        (b'"quick"', b'"\\u0071uick"', "$.preset", "second spelling"),
        (b'"quick"', b'"qu\\/ck"', "$.preset", "second spelling"),
        (b'"quick"', b' "quick"', "$.preset", "second spelling"),
        (
            b'"preset":"quick","previous":null',
            b'"previous":null,"preset":"quick"',
            "$.preflight",
            "second spelling",
        ),
        (b'"at_s":0,', b'"at_s":NaN,', f"{ROUND}.at_s", "NaN and Infinity are not JSON"),
        (b'"at_s":0,', b'"at_s":Infinity,', f"{ROUND}.at_s", "NaN and Infinity are not JSON"),
        (b'"at_s":0,', b'"at_s":-Infinity,', f"{ROUND}.at_s", "NaN and Infinity are not JSON"),
        (b'"times_s":[', b'"times_s":[1,NaN,', f"{ROUND}.times_s[1]", "NaN and Infinity are not JSON"),
        (b'{"created_at"', b'{"aaa":NaN,"created_at"', "$.aaa", "NaN and Infinity are not JSON"),
        (b'"at_s":0,', b'"at_s":1e999,', f"{ROUND}.at_s", "number out of range"),
        (b'"at_s":0,', b'"at_s":1e99999999999999999999,', f"{ROUND}.at_s", "number out of range"),
        (b'"at_s":0,', b'"at_s":1' + b"0" * 400 + b",", f"{ROUND}.at_s", "number out of range"),
        (b'"batch":1', b'"batch":9007199254740992', f"{ROUND}.batch", "an integer beyond 2**53 - 1"),
        (b'"batch":1', b'"batch":-9223372036854775808', f"{ROUND}.batch", "an integer beyond 2**53 - 1"),
        (b'"batch":1', b'"batch":18446744073709551616', f"{ROUND}.batch", "an integer beyond 2**53 - 1"),
        (b'"batch":1', b'"batch":1' + b"0" * 400, f"{ROUND}.batch", "an integer beyond 2**53 - 1"),
        (b'"batch":1', b'"batch":1' + b"0" * 5000, f"{ROUND}.batch", "out of range"),
        (b'"n":4096', b'"n":1' + b"0" * 400, "$.outcomes[0].measurement.job.params.n", "an integer beyond 2**53 - 1"),
        (b'"quick"', b'"\\ud800"', "$.preset", "not JSON after this point"),
        (b'"quick"', b'"\\udc00\\ud800"', "$.preset", "not JSON after this point"),
        (b'"quick"', b'"qu\x01ck"', "$.preset", "not JSON after this point"),
        (b'"quick"', b'"qu\\xck"', "$.preset", "not JSON after this point"),
        (b'"quick"', b'"\xff"', "$.preset", "not UTF-8"),
        (b'"quick"', b'"\xc0\xaf"', "$.preset", "not UTF-8"),  # an overlong slash
        (b'"quick"', b'"\xed\xa0\x80"', "$.preset", "not UTF-8"),  # a surrogate, encoded
        (b'{"created_at"', b'{"aaa":"\xff","created_at"', "$.aaa", "not UTF-8"),
        (b'{"created_at"', b'\xef\xbb\xbf{"created_at"', "$", "not JSON after this point"),
        (b'{"created_at"', b'/* */{"created_at"', "$", "not JSON after this point"),
        (b'"quick"', b"'quick'", "$.preset", "not JSON after this point"),
        (b'"batch":1', b'"batch":01', f"{ROUND}.batch", "not JSON after this point"),
        (b'"batch":1', b'"batch":+1', f"{ROUND}.batch", "not JSON after this point"),
        (b'"batch":1', b'"batch":1,', "$.outcomes[0].measurement.rounds[0].batch", "not JSON after this point"),
    ],
)
def test_a_flaw_is_refused_with_the_path_of_its_field(old: bytes, new: bytes, path: str, what: str) -> None:
    fault = refusal(changed(old, new))
    assert fault.path == path
    assert what in fault.what
    assert len(str(fault)) < 500


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "the file is empty"),
        (b"\x00", "not JSON after this point"),
        (b"null", "expected `object`, got `null`"),
        (b"[1,2]", "expected `object`, got `array`"),
        (b'"a', "truncated"),
        (BYTES + b"\n", "second spelling"),
        (b"\n" + BYTES, "second spelling"),
        (BYTES + b"{}", "not JSON after this point"),
        (BYTES + b"\x00", "not JSON after this point"),
        (BYTES + BYTES, "not JSON after this point"),
        (BYTES.decode().encode("utf-16"), "not UTF-8"),
        (BYTES[:-1] + b",}", "not JSON after this point"),
        (b"}" + BYTES, "not JSON after this point"),
        (b"}]}\xff", "not UTF-8"),
    ],
)
def test_a_text_that_is_no_record_is_refused_as_a_whole(data: bytes, what: str) -> None:
    fault = refusal(data)
    assert what in fault.what


def test_a_truncated_file_is_refused_wherever_it_ends() -> None:
    for end in range(1, len(BYTES)):
        fault = refusal(BYTES[:end])
        assert "truncated" in fault.what or "not UTF-8" in fault.what, (end, fault)


def test_a_truncated_file_says_what_was_reached() -> None:
    assert refusal(BYTES[: BYTES.index(b'"python"')]).path == "$.environment.packages"
    assert refusal(BYTES[: BYTES.index(b'"times_s":[') + 11]).path == f"{ROUND}.times_s"


def test_a_decimal_is_a_string_and_finite() -> None:
    text = b'{"basis":"given","name":"power","usd_per_hour":%s}'
    assert refusal(text % b"0.10", CostLine).path == "$.usd_per_hour"
    for word in (b'"NaN"', b'"sNaN"', b'"Infinity"', b'"-Infinity"'):
        fault = refusal(text % word, CostLine)
        assert fault.path == "$.usd_per_hour"
        assert "not an amount" in fault.what
    for second in (b'"+1"', b'"1e1"', b'" 1"', b'"1_0"', b'"nan"'):
        assert refusal(text % second, CostLine).path == "$.usd_per_hour"


# --- hostile files ----------------------------------------------------------------------------------------------------

MILLION = 10**6


def hostile(name: str) -> bytes:
    """Make one of the files that are all size or depth."""
    first, times = b'{"created_at"', b'"times_s":['
    ones = b",".join([b"1"] * MILLION)
    floats = b",".join([b"0.0123456789012345"] * 65_000)
    round_ = b'{"at_s":0,"batch":1,"times_s":[%s]}' % floats
    makers = {
        "arrays in arrays": lambda: b"[" * 100_000,
        "arrays in arrays, closed": lambda: b"[" * 100_000 + b"]" * 100_000,
        "objects in objects": lambda: b'{"a":' * 100_000,
        "depth in an unknown field": lambda: changed(
            first, b'{"aaa":' + b"[" * 100_000 + b"]" * 100_000 + b"," + first[1:]
        ),
        "some depth in an unknown field": lambda: changed(first, b'{"aaa":' + b"[" * 40 + b"]" * 40 + b"," + first[1:]),
        "depth in a parameter": lambda: changed(b'"n":4096', b'"n":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "an array": lambda: b"[%s]" % ones,
        "an unknown field": lambda: changed(first, b'{"aaa":[%s],' % ones + first[1:]),
        "an unknown field of objects": lambda: changed(
            first, b'{"aaa":[%s],' % b",".join([b'{"a":1}'] * MILLION) + first[1:]
        ),
        "unknown fields": lambda: b"{%s," % b",".join(b'"%d":1' % i for i in range(MILLION)) + BYTES[1:],
        "times": lambda: changed(times, times + ones + b","),
        "times with a flaw at the end": lambda: changed(times, times + ones + b",1.0,"),
        "warm-up times": lambda: changed(b'"warmup_times_s":[', b'"warmup_times_s":[%s,' % ones),
        "instruction sets": lambda: changed(b'"isa":[]', b'"isa":[%s]' % b",".join([b'"a"'] * MILLION)),
        "parameters": lambda: changed(b'"n":4096', b",".join(b'"%d":1' % i for i in range(MILLION)) + b',"n":4096'),
        "parameters with a flaw at the end": lambda: changed(
            b'"n":4096', b",".join(b'"%d":1' % i for i in range(MILLION)) + b',"n":null'
        ),
        "outcomes": lambda: changed(
            b'"outcomes":[', b'"outcomes":[' + b'{"failed":null,"measurement":null,"skipped":null},' * MILLION
        ),
        "rounds": lambda: changed(b'"rounds":[', b'"rounds":[' + b",".join([round_] * 40) + b","),
        "escapes": lambda: changed(b'"quick"', b'"%s"' % (b"\\n" * (5 * MILLION))),
        "digits": lambda: changed(b'"at_s":0,', b'"at_s":0.1%s,' % (b"3" * 20 * MILLION)),
        "an unknown integer": lambda: changed(first, b'{"aaa":%s,' % (b"1" * 10 * MILLION) + first[1:]),
        "an unknown name": lambda: changed(first, b'{"%s":1,' % (b"x" * 10 * MILLION) + first[1:]),
        "a wrong word": lambda: changed(b'"harness.report/2"', b'"%s"' % (b"x" * 10 * MILLION)),
        "a string without end": lambda: BYTES[:-1] + b',"' + b"\\\\x" * 300_000,
        "white space": lambda: b" " * 10 * MILLION + BYTES,
    }
    return makers[name]()


HOSTILE = [
    "arrays in arrays",
    "arrays in arrays, closed",
    "objects in objects",
    "depth in an unknown field",
    "some depth in an unknown field",
    "depth in a parameter",
    "an array",
    "an unknown field",
    "an unknown field of objects",
    "unknown fields",
    "times",
    "times with a flaw at the end",
    "warm-up times",
    "instruction sets",
    "parameters",
    "parameters with a flaw at the end",
    "outcomes",
    "rounds",
    "escapes",
    "digits",
    "an unknown integer",
    "an unknown name",
    "a wrong word",
    "a string without end",
    "white space",
]


KNOWN_BY = {  # what some of them are refused for, and where
    "depth in an unknown field": ("$.aaa" + "[0]" * 31, "nested deeper than 32 levels"),
    "an unknown field": ("$.aaa", "65537 elements are more than"),
    "unknown fields": ("$", "65537 elements are more than"),
    "times": (f"{ROUND}.times_s", "1000002 elements are more than"),
    "parameters": ("$.outcomes[0].measurement.job.params", "1000002 elements are more than"),
    "outcomes": ("$", "more than the 2000000 values"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_at_once_and_in_few_words(name: str) -> None:
    data = hostile(name)
    began = time.process_time()
    fault = refusal(data)
    assert time.process_time() - began < AT_ONCE_S
    assert len(str(fault)) < 700
    path, what = KNOWN_BY.get(name, (fault.path, fault.what))
    assert fault.path == path
    assert what in fault.what


def test_a_file_beyond_the_largest_is_refused_unparsed(tmp_path: Path) -> None:
    file = tmp_path / "large.json"
    with file.open("wb") as out:
        out.truncate(65 << 20)
    began = time.process_time()
    with pytest.raises(ForgeryError, match="bytes are more than the 67108864 a document may have"):
        codec.read(file, Report)
    assert time.process_time() - began < AT_ONCE_S


def test_a_large_honest_record_is_read() -> None:
    times = tuple(1e-5 + i * 1e-9 for i in range(codec.MAX_ELEMENTS))
    long = Round(at_s=0.0, batch=1, times_s=times)
    assert codec.decode(codec.encode(long), Round) == long


def test_what_could_not_be_read_again_is_not_written() -> None:
    with pytest.raises(FailureError, match=r"\$\.times_s: 65537 elements are more than the 65536"):
        codec.encode(Round(at_s=0.0, batch=1, times_s=(1.0,) * (codec.MAX_ELEMENTS + 1)))


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(BYTES)
    assert codec.read(file, Report) == REPORT


def test_a_file_that_is_not_there_is_misuse_and_no_forgery(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"cannot read '.*missing\.json': No such file or directory"):
        codec.read(tmp_path / "missing.json", Report)
    with pytest.raises(MisuseError, match="Is a directory"):
        codec.read(tmp_path, Report)


# --- fuzz -------------------------------------------------------------------------------------------------------------


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    data = bytearray(BYTES)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["replace", "insert", "remove", "repeat"])):
            case "replace":
                data[at] = draw(st.integers(0, 255))
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=4) | st.sampled_from(SPLINTERS))
            case "remove":
                del data[at : at + draw(st.integers(1, 40))]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 80))]
        if not data:
            break
    return bytes(data)


SPLINTERS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b"\\",
    b"\\u",
    b"null",
    b"1e999",
    b"-",
    b"0",
    b'"a":1,',
    b"NaN",
    b" ",
]


@settings(max_examples=400, deadline=None)
@given(mutations())
def test_a_mutated_report_is_refused_or_is_another_record(data: bytes) -> None:
    try:
        record = codec.decode(data, Report)
    except ForgeryError as fault:
        event("refused")
        assert str(fault).startswith(f"{fault.path}: ")  # noqa: PT017 - either way is fine, nothing else is
        return
    event("another record")
    assert codec.encode(record) == data
    assert (record == REPORT) == (data == BYTES)
    assert (codec.digest(record) == codec.digest(REPORT)) == (data == BYTES)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.lists(st.sampled_from(SPLINTERS), max_size=40).map(b"".join))
def test_any_bytes_are_refused_in_words(data: bytes) -> None:
    assert refusal(data).path.startswith("$")


# --- the schema -------------------------------------------------------------------------------------------------------

SCHEMA = codec.schema()


def errors(document: object, name: str = "Report") -> list[str]:
    validator = Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"})
    return [error.message for error in validator.iter_errors(document)]


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_record_has_a_schema_that_names_every_field() -> None:
    for kind in RECORDS:
        part = SCHEMA["$defs"][kind.__name__]
        names = {field.name for field in dataclasses.fields(kind)}
        assert set(part["properties"]) == set(part["required"]) == names
        assert part["additionalProperties"] is False


def test_the_schema_takes_an_encoded_report_and_no_other_field() -> None:
    document = json.loads(BYTES)
    assert errors(document) == []
    assert errors({**document, "aaa": 1})
    assert errors({k: v for k, v in document.items() if k != "previous"})
    assert errors({**document, "schema": "harness.report/3"})
    document["outcomes"][0]["measurement"]["rounds"][0]["batch"] = 1.5
    assert errors(document)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(records(Quote))
def test_the_schema_takes_what_encode_writes(quote: Quote) -> None:
    assert errors(json.loads(codec.encode(quote)), "Quote") == []


def test_the_schema_that_is_shipped_is_the_one_that_is_generated() -> None:
    shipped = Path(__file__).parent.parent / "docs" / "schema.json"
    assert json.loads(shipped.read_text(encoding="utf-8")) == SCHEMA, (
        "write it again: harness schema > docs/schema.json"
    )
