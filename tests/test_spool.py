"""What a node measured stays there until it was heard, and no try is forgotten by a driver that is killed."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from harness.cluster.spool import Reply, Spool, claim, spool_folder
from harness.cluster.tries import Tries
from harness.errors import FailureError, ForgeryError
from harness.model import Attempt, AttemptEnd, Job, Outcome, Skipped

JOB = Job(benchmark="b", version=1, params={"n": 1}, device_uuid="GPU-1", seed="0")


def reply(attempt: str) -> Reply:
    outcome = Outcome(skipped=Skipped(job=JOB, reason="a test"))
    return Reply(attempt=attempt, started_at="now", elapsed_s=1.0, outcomes=(outcome,))


def test_a_reply_is_kept_until_it_was_heard(tmp_path: Path) -> None:
    spool = Spool("run", "GPU-1", tmp_path / "spool")
    for attempt in ("x-2", "x-1"):
        spool.keep(reply(attempt))
        time.sleep(0.01)
    again = Spool("run", "GPU-1", tmp_path / "spool")
    assert again.collect(()) == (reply("x-2"), reply("x-1"))
    assert again.collect(["x-2", "never"]) == (reply("x-1"),)
    again.forget(["x-1"])
    again.close()
    assert list((tmp_path / "spool").iterdir()) == []


def test_other_runs_and_other_devices_have_spools_of_their_own(tmp_path: Path) -> None:
    Spool("run", "GPU-1", tmp_path / "s").keep(reply("x-1"))
    assert Spool("run", "GPU-2", tmp_path / "s").collect(()) == ()
    assert Spool("other", "GPU-1", tmp_path / "s").collect(()) == ()


def test_what_was_torn_is_no_reply(tmp_path: Path) -> None:
    spool = Spool("run", "GPU-1", tmp_path / "s")
    spool.keep(reply("x-1"))
    (file,) = (tmp_path / "s").rglob("x-1")
    file.write_bytes(file.read_bytes()[:-1])
    file.with_name(".x-2").write_bytes(b"killed while it wrote")
    assert spool.collect(()) == ()
    spool.forget(["x-1"])
    spool.close()
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "x" * 65])
def test_a_try_that_would_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ForgeryError, match="is not the name of a try"):
        Spool("run", "GPU-1", tmp_path / "s").forget([name])


def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    assert Spool("run", "GPU-1", tmp_path / "s")
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    (tmp_path / "s").chmod(0o770)
    with pytest.raises(FailureError, match="must be a folder of this user's, with mode 0700"):
        Spool("run", "GPU-1", tmp_path / "s")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(FailureError, match="must be a folder"):
        Spool("run", "GPU-1", tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(FailureError, match="cannot keep results"):
        Spool("run", "GPU-1", tmp_path / "file")


def test_a_run_that_nobody_took_up_again_is_forgotten(tmp_path: Path) -> None:
    Spool("old", "GPU-1", tmp_path / "s").keep(reply("x-1"))
    (folder,) = (tmp_path / "s").iterdir()
    os.utime(folder, (0, 0))
    Spool("new", "GPU-1", tmp_path / "s")
    assert not folder.exists()


def test_the_spool_is_with_this_users_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert spool_folder() == Path("/state/harness/spool")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert spool_folder().name == f"harness-spool-{os.getuid()}"


def test_a_device_is_one_lease_s_at_a_time(tmp_path: Path) -> None:
    held = claim("GPU-1", tmp_path / "s")
    os.close(claim("GPU-2", tmp_path / "s"))
    waiting = threading.Thread(target=lambda: os.close(claim("GPU-1", tmp_path / "s")))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    os.close(held)
    waiting.join(5)
    assert not waiting.is_alive()


def attempt(ended: AttemptEnd) -> Attempt:
    return Attempt(number=1, started_at="now", elapsed_s=0.0, ended=ended, reason="why")


def test_a_try_stands_as_aborted_until_it_is_known_how_it_ended(tmp_path: Path) -> None:
    report = tmp_path / "r-partial.json"
    tries = Tries(report)
    assert tries.past(JOB) == {}
    tries.record("x-1", JOB, attempt("aborted"))
    tries.record("x-1", JOB, attempt("crashed"))
    tries.record("x-2", JOB, attempt("aborted"))
    tries.close()
    with (tmp_path / "r-partial.tries").open("ab") as file:
        file.write(b'{"half')
    again = Tries(report)
    assert {name: a.ended for name, a in again.past(JOB).items()} == {"x-1": "crashed", "x-2": "aborted"}
    again.record("y-1", JOB, attempt("aborted"))
    assert set(Tries(report).past(JOB)) == {"x-1", "x-2", "y-1"}
    again.close(complete=True)
    assert list(tmp_path.iterdir()) == []


def test_tries_that_were_tampered_with_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.tries").write_bytes(b"{}\n")
    with pytest.raises(ForgeryError):
        Tries(tmp_path / "r.json")


def test_tries_that_cannot_be_written_end_the_run(tmp_path: Path) -> None:
    tries = Tries(tmp_path / "none" / "r.json")
    with pytest.raises(FailureError, match="cannot write"):
        tries.record("x-1", JOB, attempt("aborted"))
