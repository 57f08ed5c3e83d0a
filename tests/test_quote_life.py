"""The life of a quote: a machine that cannot be driven twice over any step, and a journal in which every change shows."""

from __future__ import annotations

import json
import sqlite3
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.cli import cli
from harness.errors import FailureError, ForgeryError, MisuseError
from harness.market.sales.journal import (
    GENESIS,
    DeviceTakenError,
    Entry,
    Journal,
    KeyUsedError,
    PaymentUsedError,
)
from harness.market.sales.journal_check import check
from harness.market.sales.life import AGAIN, IN_FLIGHT, NEXT, START, STATES, TERMINAL, State, StateError, replay, step

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
Q = "0x" + "ab" * 32
PATH: tuple[State, ...] = ("EVIDENCED", "QUOTED", "ACCEPTED", "AUTHORIZED", "CAPTURED")


def journal(tmp_path: Path, now: datetime = NOW) -> Journal:
    return Journal(tmp_path / "j.db", now=lambda: now)


def entries(quote_id: str, *path: State, **last: Any) -> list[Entry]:
    """Return the steps of a path; `last` goes into the last one."""
    expected = (START, *path)
    return [
        Entry(quote_id=quote_id, expected=expected[i], state=to, **(last if to == path[-1] else {}))
        for i, to in enumerate(path)
    ]


# --- the machine ------------------------------------------------------------------------------------------------------


@st.composite
def walks(draw: st.DrawFn) -> list[State]:
    """Any walk from a draft along the machine's own ways."""
    state: State = START
    walk: list[State] = []
    while NEXT[state] and (not walk or draw(st.integers(0, 5))):
        state = draw(st.sampled_from(sorted(NEXT[state])))
        walk.append(state)
    return walk


@given(walks())
def test_no_walk_comes_to_a_state_twice_so_nothing_is_claimed_captured_or_disputed_twice(walk: list[State]) -> None:
    assert replay(walk) == (walk[-1] if walk else START)
    assert len(set(walk)) == len(walk)
    if "CAPTURED" in walk:
        assert {"ACCEPTED", "AUTHORIZED"} <= set(walk[: walk.index("CAPTURED")])
    if "REFUNDED" in walk:
        assert "CAPTURED" in walk
        assert "UPHELD" not in walk
    assert not {"VOIDED", "CAPTURED"} <= set(walk)


@given(walks(), st.sampled_from(STATES), st.sampled_from(STATES))
def test_a_step_is_taken_only_from_where_the_quote_is_and_only_where_a_way_leads(
    walk: list[State], expected: State, to: State
) -> None:
    now = replay(walk)
    if now == expected and to in NEXT[now]:
        assert step(now, expected, to) == to
    else:
        with pytest.raises(StateError):
            step(now, expected, to)


def test_an_unknown_outcome_is_the_end_and_every_payment_step_can_come_to_it() -> None:
    assert "OUTCOME_UNKNOWN" in TERMINAL
    assert not NEXT["OUTCOME_UNKNOWN"]
    assert all("OUTCOME_UNKNOWN" in NEXT[state] for state in IN_FLIGHT)
    assert all(to in NEXT[state] and to in TERMINAL for state, to in AGAIN.items())


def test_every_state_can_be_reached() -> None:
    reached, new = {START}, {START}
    while new:
        new = {to for state in new for to in NEXT[state]} - reached
        reached |= new
    assert reached == set(STATES) == set(NEXT)


# --- the journal ------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(walk_of=st.lists(st.tuples(st.integers(0, 2), walks()), max_size=6), orders=st.randoms())
def test_whatever_is_asked_of_it_a_journal_holds_lives_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, walk_of: list[tuple[int, list[State]]], orders: Any
) -> None:
    book = journal(tmp_path_factory.mktemp("book"))
    wanted = [(f"q{name}", i, walk) for name, walk in walk_of for i in range(len(walk))]
    orders.shuffle(wanted)
    lives: dict[str, list[State]] = {}
    for name, i, walk in wanted:
        expected = walk[i - 1] if i else START
        life = lives.setdefault(name, [])
        try:
            book.append(Entry(quote_id=name, expected=expected, state=walk[i]))
        except StateError:
            assert replay(life) != expected or walk[i] not in NEXT[expected]
        else:
            life.append(walk[i])
    book.close()
    found = check(book._path)
    assert found.row_count == sum(map(len, lives.values()))
    reopened = Journal(book._path)
    assert all(reopened.state(name) == (life[-1] if life else None) for name, life in lives.items())
    reopened.close()


def test_rows_written_together_are_written_all_or_none(tmp_path: Path) -> None:
    book = journal(tmp_path)
    book.append(*entries("other", *PATH[:3], claim="c"))
    head = book.head()
    with pytest.raises(PaymentUsedError):
        book.append(*entries(Q, *PATH[:3], claim="c"))
    assert book.rows(Q) == ()
    assert book.head() == head


def test_of_many_who_want_one_step_one_gets_it_across_connections(tmp_path: Path) -> None:
    journal(tmp_path).append(*entries(Q, *PATH[:2]))
    got: list[object] = []

    def want(name: int) -> None:
        book = Journal(tmp_path / "j.db")
        try:
            got.append(book.append(Entry(quote_id=Q, expected="QUOTED", state="ACCEPTED", claim=f"c{name}")))
        except StateError as err:
            got.append(err)
        book.close()

    threads = [threading.Thread(target=want, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(isinstance(one, StateError) for one in got) == [False] + [True] * 5
    assert check(tmp_path / "j.db").row_count == 3


def test_a_payment_a_key_and_a_device_are_each_good_once(tmp_path: Path) -> None:
    book = journal(tmp_path)
    until = int(NOW.timestamp()) + 60
    book.append(*entries("a", *PATH[:3], claim="p", idempotency_key="k", device="gpu", until_s=until))
    for odd, error in (({"claim": "p"}, PaymentUsedError), ({"idempotency_key": "k"}, KeyUsedError)):
        with pytest.raises(error):
            book.append(*entries("b", *PATH[:3], **odd))
    with pytest.raises(DeviceTakenError):
        book.append(*entries("b", *PATH[:3], device="gpu", until_s=until))
    book.append(Entry(quote_id="a", expected="ACCEPTED", state="VOIDED"))
    book.append(*entries("b", *PATH[:3], device="gpu", until_s=until))  # nothing was paid: it is free again
    later = Journal(tmp_path / "j.db", now=lambda: datetime.fromtimestamp(until, UTC))
    later.append(*entries("c", *PATH[:3], device="gpu", until_s=until + 60))  # and when its time is over


@pytest.mark.parametrize(
    "statement", ["UPDATE journal SET body = '{}' WHERE seq = 2", "DELETE FROM journal WHERE seq = 5"]
)
def test_the_file_itself_refuses_to_change_or_drop_a_row(tmp_path: Path, statement: str) -> None:
    journal(tmp_path).append(*entries(Q, *PATH))
    with pytest.raises(sqlite3.IntegrityError, match="only grows"):
        sqlite3.connect(tmp_path / "j.db").execute(statement)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('UPDATE journal SET body = \'{"amount":"1"}\' WHERE seq = 3', "row 3 does not have its digest"),
        ("UPDATE journal SET at = at || ' ' WHERE seq = 1", "row 1 does not have its digest"),
        ("UPDATE journal SET state = 'VOIDED' WHERE seq = 5", "row 5 does not have its digest"),
        ("UPDATE journal SET claim = 'another' WHERE seq = 3", "row 3 does not have its digest"),
        ("DELETE FROM journal WHERE seq = 2", "row 3 does not follow"),
        ("DELETE FROM journal WHERE seq = 1", "row 2 does not follow"),
        ("UPDATE journal SET seq = 9 WHERE seq = 5", "row 9 does not follow"),
        ("UPDATE journal SET body = '{' WHERE seq = 4", "row 4 holds no JSON"),
    ],
)
def test_a_row_that_was_changed_removed_or_moved_is_found_by_its_number(tmp_path: Path, change: str, says: str) -> None:
    book = journal(tmp_path)
    book.append(*entries(Q, *PATH, body={"amount": "9"}))
    book.close()
    with sqlite3.connect(tmp_path / "j.db") as db:
        for trigger in ("rows_keep", "rows_stay"):
            db.execute(f"DROP TRIGGER {trigger}")
        db.execute(change)
    with pytest.raises(ForgeryError, match=says):
        check(tmp_path / "j.db")


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("body", '{"a":NaN}', "row 1 does not have its digest"),
        ("body", '{"a":1e999}', "row 1 does not have its digest"),
        ("body", '{"a":12345678901234567890}', "row 1 does not have its digest"),
        ("body", '{"a":"\\ud800"}', "row 1 does not have its digest"),
        ("body", "[" * 2000 + "]" * 2000, "row 1 holds no JSON"),
        ("body", '{"a":' + "9" * 5000 + "}", "row 1 holds no JSON"),
        ("until_s", 2**53 + 1, "row 1 does not have its digest"),
    ],
    ids=["NaN", "Infinity", "int", "surrogate", "depth", "digits", "until_s"],
)
def test_a_row_that_was_changed_to_what_no_row_can_hold_is_found_as_any_other(
    tmp_path: Path, column: str, value: object, says: str
) -> None:
    book = journal(tmp_path)
    book.append(*entries(Q, *PATH[:1]))
    book.close()
    with sqlite3.connect(tmp_path / "j.db") as db:
        db.execute("DROP TRIGGER rows_keep")
        db.execute(f"UPDATE journal SET {column} = ?", (value,))  # noqa: S608 - a constant
    with pytest.raises(ForgeryError, match=says):
        check(tmp_path / "j.db")


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(150):
        deep = {"a": deep}
    book = journal(tmp_path)
    with pytest.raises(MisuseError, match="nested deeper"):
        book.append(Entry(quote_id=Q, note="delivered", body=deep))
    assert book.head() == GENESIS


def test_rows_cut_off_at_the_end_are_found_by_who_kept_the_head(tmp_path: Path) -> None:
    book = journal(tmp_path)
    book.append(*entries(Q, *PATH))
    head = book.head()
    book.close()
    with sqlite3.connect(tmp_path / "j.db") as db:
        db.execute("DROP TRIGGER rows_stay")
        db.execute("DELETE FROM journal WHERE seq = 5")
    assert check(tmp_path / "j.db").row_count == 4  # the chain alone cannot tell
    with pytest.raises(ForgeryError, match="cut off"):
        check(tmp_path / "j.db", head=head)


def test_a_sealed_step_that_no_life_has_is_found(tmp_path: Path) -> None:
    """Somebody who writes with the program's own digests, and without its rules, as by another program."""
    book = journal(tmp_path)
    book.append(*entries(Q, *PATH[:3]))
    (row,) = book.append(Entry(quote_id="note", note="n"))
    from dataclasses import replace

    from harness.market.sales.journal import COLUMNS, _flat, seal_of

    forged = replace(row, seq=5, quote_id=Q, kind="step", state="CAPTURED", previous=row.digest)
    forged = replace(forged, digest=seal_of(forged))
    book._db.execute(f"INSERT INTO journal ({COLUMNS}) VALUES ({', '.join('?' * 12)})", _flat(forged))  # noqa: S608
    with pytest.raises(ForgeryError, match="row 5 is no step of a quote's life"):
        check(tmp_path / "j.db")


def test_nobody_else_reads_what_was_delivered_to_whom(tmp_path: Path) -> None:
    book = journal(tmp_path)
    book.append(*entries(Q, *PATH))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    book.close()
    with pytest.raises(FailureError, match="cannot open"):
        Journal(tmp_path / "nosuch" / "j.db")


def test_an_empty_journal_and_what_is_none(tmp_path: Path) -> None:
    journal(tmp_path).close()
    assert check(tmp_path / "j.db").head == GENESIS
    with pytest.raises(MisuseError, match="no journal"):
        check(tmp_path / "nosuch.db")
    (tmp_path / "text.db").write_text("this is no database, and long enough to be taken for one")
    with pytest.raises(ForgeryError):
        check(tmp_path / "text.db")
    with pytest.raises(ForgeryError):
        Journal(tmp_path / "text.db")
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (x)")
    with pytest.raises(ForgeryError, match="another kind"):
        Journal(tmp_path / "other.db")


def test_the_command_checks_and_says_what_wants_a_person(tmp_path: Path) -> None:
    book = journal(tmp_path)
    book.append(*entries("paid", *PATH))
    book.append(*entries("lost", *PATH[:4], "OUTCOME_UNKNOWN"))
    book.close()
    told = CliRunner().invoke(cli, ["journal", str(tmp_path / "j.db"), "--json"], standalone_mode=False)
    found = json.loads(told.stdout.splitlines()[-1])
    assert found["unknown"] == ["lost"]
    assert found["undelivered"] == ["paid"]
    assert found["quote_counts"] == {"CAPTURED": 1, "OUTCOME_UNKNOWN": 1}
    read = CliRunner().invoke(cli, ["journal", str(tmp_path / "j.db"), "--head", found["head"]])
    assert read.exit_code == 0
    assert "unknown outcome: lost" in read.output
