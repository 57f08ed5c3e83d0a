"""A node of a fleet: what it is started with, that it comes back, that it leaves nothing behind, and how the fleet sees it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fakedriver import Driver, each_once
from fakefleet import PACED
from rich.console import Console
from test_plugin import install

from harness.cli import cli
from harness.cluster import census, nodes, rayenv
from harness.cluster.nodes import Start, backoff_s, command, gist, visible
from harness.cluster.task import Inventory
from harness.errors import FailureError, MisuseError
from harness.model import Device, Environment, Node, Note, Preflight
from harness.render.fleet import census_table


def gpu(number: int, *, broken: bool = False) -> Device:
    return Device(
        uuid=f"GPU-{number}{number}-x",
        name="a card",
        kind="cuda",
        selector=f"cuda:{number}",
        unusable_reason="lost" if broken else None,
        memory_bytes=2**34,
        driver="600.1",
        sensors={},
    )


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [(None, [0, 2]), ("", []), ("0", [0]), ("2,0", [0, 2]), ("1", []), ("GPU-22", [2]), ("GPU-22-x,7", [2])],
)
def test_the_gpus_are_those_that_work_and_were_chosen(chosen: str | None, expected: list[int]) -> None:
    devices = [gpu(0), gpu(1, broken=True), gpu(2)]
    assert visible(devices, chosen) == tuple(devices[at].uuid for at in expected)


def head(ip: str = "127.0.0.1") -> Start:
    return Start(head=True, address=f"{ip}:6379", own_ip=ip, token=Path("/token"), gpus=("GPU-a", "GPU-b"))


def worker() -> Start:
    return Start(head=False, address="10.0.0.1:6379", own_ip="10.0.0.2", token=Path("/token"))


def test_ray_counts_the_gpus_that_it_is_shown_by_uuid(tmp_path: Path) -> None:
    told = nodes.variables(head(), tmp_path, {"PATH": "p", "CUDA_VISIBLE_DEVICES": "0", "RAY_AUTH_TOKEN": "secret"})
    assert told["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert "--num-gpus=2" in command(head())
    assert told["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert (told["PATH"], told["RAY_TMPDIR"]) == ("p", str(tmp_path))
    assert "secret" not in told.values()


def test_a_node_never_starts_without_asking_for_a_token(tmp_path: Path) -> None:
    for start in (head(), worker()):
        told = nodes.variables(start, tmp_path, {"RAY_AUTH_MODE": "disabled"})
        assert (told["RAY_AUTH_MODE"], told["RAY_AUTH_TOKEN_PATH"]) == ("token", "/token")


def test_a_head_remembers_its_nodes_and_stays_at_home_unless_told_otherwise(tmp_path: Path) -> None:
    at_home, abroad, other = (
        nodes.variables(s, tmp_path, {}) for s in (head(), head(socket.gethostbyname("localhost")), worker())
    )
    assert at_home["RAY_gcs_storage"] == abroad["RAY_gcs_storage"] == "rocksdb"
    assert "RAY_gcs_storage" not in other
    assert (at_home["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"], other["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]) == ("0", "1")
    assert "--include-dashboard=false" in command(head())
    assert "--address=10.0.0.1:6379" in command(worker())


def test_waiting_grows_and_stops_growing() -> None:
    waits = [backoff_s(n) for n in range(1, 12)]
    assert waits[:4] == [1, 2, 4, 8]
    assert waits == sorted(waits)
    assert waits[-1] == 30


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("", ""),
        ("one\ntwo\n", "two"),
        ("Traceback\nValueError: no port\n  at line\n", "ValueError: no port"),
        (
            "ended:\n  raylet [exit code=-9]\n  agent [exit code=1]\nkilled\n",
            "raylet [exit code=-9], agent [exit code=1]",
        ),
    ],
)
def test_the_gist_of_a_log_is_one_line(log: str, told: str) -> None:
    assert gist(log) == told


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "either --head"),
        (["--head", "--join", "10.0.0.1:1"], "either --head"),
        (["--head", "--bind", "0.0.0.0"], "no address for others"),  # noqa: S104 - it is refused
        (["--head", "--bind", "127.0.0.2"], "no address for others"),
        (["--head", "--bind", "here"], "no IP address"),
        (["--head", "--bind", "8.8.8.8"], "public address"),
        (["--head", "--bind", "192.0.2.77"], "no address of this machine"),
        (["--head", "--port", "99999"], "is no port"),
        (["--join", "localhost:6379"], "this machine itself"),
        (["--join", "10.0.0.1"], "HOST:PORT"),
        (["--join", "10.0.0.1:6379", "--token-file", "none"], "cannot read the token"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(args: list[str], words: str) -> None:
    ended = CliRunner().invoke(cli, ["node", "start", *args])
    assert isinstance(ended.exception, MisuseError), ended.exception
    assert words in str(ended.exception)


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(MisuseError, match="something listens on port"):
            nodes.lead("127.0.0.1", other.getsockname()[1], tmp_path / "token")
    assert not (tmp_path / "token").exists()


def test_a_head_makes_its_token_and_refuses_one_that_others_can_read(tmp_path: Path) -> None:
    (tmp_path / "open").touch(mode=0o644)
    with pytest.raises(MisuseError, match="chmod 600"):
        nodes.lead("127.0.0.1", free_port(), tmp_path / "open")
    start = nodes.lead("localhost", free_port(), tmp_path / "new")
    assert start.own_ip == "127.0.0.1"
    assert rayenv.read_token(tmp_path / "new")


def test_a_node_joins_with_the_address_that_the_head_sees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rayenv.make_token(tmp_path / "token")
    answer = rayenv.Access(address="10.0.0.1:6379", token=tmp_path / "token")
    monkeypatch.setattr(rayenv, "check", lambda *_: answer)
    monkeypatch.setattr(nodes, "_seen_from", lambda *_: "10.0.0.7")
    assert nodes.follow("10.0.0.1:6379", tmp_path / "token").own_ip == "10.0.0.7"
    assert nodes.follow("10.0.0.1:6379", tmp_path / "token", "10.0.0.8").own_ip == "10.0.0.8"
    answer = rayenv.Access(address="10.0.0.1:6379", token=None)
    with pytest.raises(MisuseError, match="asks for no token"):
        nodes.follow("10.0.0.1:6379", tmp_path / "token")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- the fleet as it is seen ---------------------------------------------------------------------------------------------

ENVIRONMENT = Environment(
    harness_version="0.1",
    python="3.11.7",
    os="Linux",
    packages={"ray": "2.60.0"},
    cpu_limit_count=None,
    niceness=None,
    load_average_1min=None,
    memory_free_bytes=None,
    governor=None,
)


def node(place: str, ip: str, why: str = "") -> dict[str, Any]:
    return {"NodeID": place, "NodeManagerAddress": ip, "NodeManagerHostname": f"h{ip}", "DeathReasonMessage": why}


def test_a_census_tells_who_is_here_silent_or_gone() -> None:
    busy = Note(severity="refuse", what="somebody computes on it", advice="wait")
    inventory = Inventory(
        node=Node(name="a"),
        place="1",
        environment=ENVIRONMENT,
        devices=(gpu(0), gpu(1, broken=True), gpu(2)),
        preflight=(Preflight(device_uuid=gpu(2).uuid, idle_power_w=None, notes=(busy,)),),
    )
    seen = [node("0", "ip1", "an earlier life"), node("1", "ip1"), node("2", "ip2"), node("3", "ip3", "cut off")]
    found = census.members(seen, {"1": inventory, "2": FailureError("it did not say")})
    assert [(m.state, m.ip, m.reason) for m in found] == [
        ("here", "ip1", None),
        ("silent", "ip2", "it did not say"),
        ("gone", "ip3", "cut off"),
    ]
    assert [census.objection(found[0], d) for d in inventory.devices] == [None, "lost", "somebody computes on it: wait"]
    console = Console(width=200)
    with console.capture() as drawn:
        console.print(census_table(found))
    lines = drawn.get().splitlines()
    assert [re.search(r"not usable|usable|silent|gone", line)[0] for line in lines[1:]] == [  # type: ignore[index]
        "usable",
        "not usable",
        "not usable",
        "silent",
        "gone",
    ]
    assert "16.0" in lines[1]


# --- a real one ----------------------------------------------------------------------------------------------------------


class Live:
    """`harness node start --head` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.port, self.log, self._folder = free_port(), folder / "log", folder
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        install(folder / "plugin", "paces", paced=PACED)
        paths = (Path(__file__).parent, folder / "plugin")
        self.env |= {"PYTHONPATH": os.pathsep.join(map(str, paths)), "FAKE_NODE": "a"}
        self.env |= {"XDG_CONFIG_HOME": str(folder), "XDG_STATE_HOME": str(folder)}
        args = ("node", "start", "--head", "--port", str(self.port))
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "harness", *args], env=self.env, stdout=file, stderr=file
            )

    def said(self, words: str) -> Callable[[], bool]:
        return lambda: words in self.log.read_text()

    def until(self, what: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def family(self) -> dict[int, str]:
        """Return the processes below it, and what they are."""
        parents, names = {}, {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                head_, _, rest = stat.read_text().rpartition(")")
            except OSError:
                continue
            pid = int(stat.parent.name)
            parents[pid], names[pid] = int(rest.split()[1]), head_.partition("(")[2]
        mine = {self.process.pid}
        while found := {pid for pid, parent in parents.items() if parent in mine} - mine:
            mine |= found
        return {pid: names[pid] for pid in mine - {self.process.pid}}

    def pid(self, name: str) -> int:
        """Return the one process below it that is called so."""
        (pid,) = [pid for pid, called in self.family().items() if called == name]
        return pid


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    started = Live(tmp_path_factory.mktemp("node"))
    try:
        started.until(started.said("join "), 120)
        yield started
    finally:
        started.process.send_signal(signal.SIGTERM)
        started.process.wait(60)


def listeners(pids: set[int]) -> list[str]:
    """Return the addresses, as /proc spells them, on which these processes listen."""
    inodes = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(str(fd.readlink()))
            except OSError:
                continue
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [line[1].partition(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in inodes]


@pytest.mark.slow
def test_a_head_says_three_lines_and_listens_at_home_only(live: Live) -> None:
    lines = live.log.read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["head", "token", "join"]
    assert f"127.0.0.1:{live.port}" in lines[0]
    found = listeners(set(live.family()))
    assert len(found) >= 4
    assert set(found) <= {"0100007F", "0000000000000000FFFF00000100007F"}


@pytest.mark.slow
def test_the_status_of_a_fleet_is_what_its_nodes_say(live: Live) -> None:
    args = ("fleet", "status", "--ray", f"127.0.0.1:{live.port}", "--json")
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "harness", *args], env=live.env, capture_output=True, text=True, check=True
    )
    (member,) = json.loads(ended.stdout)
    assert member["state"] == "here"
    assert member["inventory"]["devices"][0]["kind"] == "cpu"
    assert member["inventory"]["environment"]["niceness"] == os.nice(0)
    assert ended.stderr == ""


@pytest.mark.slow
def test_a_head_that_is_killed_comes_back_and_the_run_it_took_along_is_finished(live: Live, tmp_path: Path) -> None:
    out, ray = tmp_path / "out", ("--ray", f"127.0.0.1:{live.port}")
    driver = Driver("all", tmp_path, "paced", "--device", "cpu", *ray, "--out", str(out), env=live.env)
    driver.work_until(2)
    os.kill(live.pid("gcs_server"), signal.SIGKILL)
    assert driver.code() == 1, driver.log.read_text()
    last, done = driver.log.read_text().splitlines()[-1], driver.told("[")  # the next driver writes over its log
    (unfinished,) = out.glob("*-partial.json")
    assert last.startswith("harness: ")
    assert f"--resume {unfinished}" in last
    live.until(live.said("this node is back"), 90)
    assert "left the fleet (gcs_server" in live.log.read_text()
    resumed = Driver("all", tmp_path, *ray, "--resume", str(unfinished), env=live.env)
    assert resumed.code() == 0, resumed.log.read_text()
    assert (resumed.told(f"[{done}/12]"), resumed.told(f"[{done + 1}/12]")) == (0, 1)
    (final,) = out.iterdir()
    wasted = [a.ended for o in each_once(final) for a in o.attempts]
    assert set(wasted) <= {"aborted", "lost"}


@pytest.mark.slow
def test_a_node_ends_with_nothing_left(live: Live) -> None:
    everybody = live.family()
    assert everybody
    live.process.send_signal(signal.SIGTERM)
    assert live.process.wait(40) == 0
    assert live.log.read_text().splitlines()[-1] == "stopped"
    assert not [pid for pid in everybody if Path(f"/proc/{pid}").exists()]
