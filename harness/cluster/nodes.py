"""Keeps one node of a Ray cluster running in the foreground, and tells what the nodes of a cluster are.

`ray start --block` does the work. Around it: a token always, GPUs by UUID, a new start when Ray ends, nothing left when we end, and
three plain lines for its twenty.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from harness.cluster import rayenv
from harness.cluster.nursery import sweep
from harness.device.sensors import nvml_devices
from harness.errors import FailureError, MisuseError
from harness.model import Device

__all__ = ["Start", "backoff_s", "command", "follow", "gist", "lead", "node", "supervise", "variables", "visible"]

Say = Callable[[str], None]

_PR_SET_CHILD_SUBREAPER = 36
_UP = "Ray runtime started."
_UP_S = 180.0  # on a machine that is busy; on an idle one it takes 10
_HOME = "127.0.0.1"
_POLL_S = 0.2
_STOP_S = 12.0  # for Ray to take its leave; then it is killed
_HASTY_S = 10.0  # what ends sooner was refused; what takes longer may be a machine too busy for Ray's own deadlines, so once more
_SETTLED_S = 60.0  # a node that ran so long has no history of failing
_BACKOFF_MOST_S = 30.0
_TAIL = 64 << 10
# Should we be killed, the kernel ends `ray start`, which ends the rest. Set by the child itself: it is the one thing that holds then.
_ENTRY = (
    "import ctypes, runpy; ctypes.CDLL(None).prctl(1, 15); "
    "runpy.run_module('ray.scripts.scripts', run_name='__main__', alter_sys=True)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A node to start: the head of a cluster, or one that joins it."""

    head: bool
    address: str  # of the head, which is this node or the one to join
    own_ip: str
    token: Path
    gpus: tuple[str, ...] = ()  # UUIDs

    @property
    def loopback_only(self) -> bool:
        """Whether only this machine itself can reach it."""
        return rayenv.is_loopback(self.own_ip)


def node(
    *,
    head: bool = False,
    join: str | None = None,
    bind: str | None = None,
    port: int = 6379,
    token: str | Path | None = None,
    say: Say = lambda _: None,
) -> None:
    """Make this machine a node of a fleet until SIGINT or SIGTERM comes. Only for the main thread of a process.

    Args:
        head: begin a fleet.
        join: join the one whose head is at this address, HOST:PORT.
        bind: this node's address; for a head 127.0.0.1 by default, which no other machine reaches.
        port: of the head.
        token: file of the fleet's token; a head makes it if it is missing.
        say: whoever wants to follow, a line at a time.

    Raises:
        MisuseError: the request cannot be met.
        FailureError: Ray does not start.
    """
    if head == bool(join):
        msg = "say either --head, to begin a fleet, or --join HOST:PORT, to join one"
        raise MisuseError(msg)
    file = Path(token or rayenv.default_token()).absolute()
    supervise(follow(join, file, bind) if join else lead(bind or _HOME, port, file), say)


def lead(bind: str, port: int, token: Path) -> Start:
    """Plan the head of a cluster at one address of this machine, and make its token if there is none.

    Raises:
        MisuseError: the address is not ours, is taken, or is a public one; or others can read the token.
    """
    ip = _plain_ip(bind)
    _refuse_public(ip)
    _refuse_taken(ip, port)
    rayenv.make_token(token)
    rayenv.read_token(token)
    return Start(head=True, address=f"{ip}:{port}", own_ip=ip, token=token, gpus=_gpus())


def follow(address: str, token: Path, bind: str | None = None) -> Start:
    """Plan a node of a cluster that is there.

    Raises:
        MisuseError: nothing is there that we may join.
    """
    host, port = rayenv.split(address)
    if rayenv.is_loopback(host):
        msg = (
            f"{address!r} is this machine itself, all of whose GPUs its head already has: "
            "give the head an address on a network (--head --bind ADDRESS), and join from another machine"
        )
        raise MisuseError(msg)
    rayenv.read_token(token)
    if rayenv.check(address, token).token is None:
        msg = f"the Ray cluster at {address!r} asks for no token: start it with `harness node start --head`"
        raise MisuseError(msg)
    ip = _plain_ip(bind) if bind else _seen_from(host, port)
    _refuse_public(ip)
    return Start(head=False, address=address, own_ip=ip, token=token, gpus=_gpus())


def command(start: Start) -> list[str]:
    """Return the command that starts Ray, all of whose ports but the head's are chosen by Ray or the kernel."""
    flags = [f"--node-ip-address={start.own_ip}", f"--num-gpus={len(start.gpus)}", "--dashboard-agent-listen-port=0"]
    flags += [
        "--log-color=false",
        f"--labels=harness.dev/version={metadata.version('gpu-assay')}",
        "--include-log-monitor=false",
    ]
    if start.head:
        _, port = rayenv.split(start.address)
        where = ["--head", f"--port={port}", "--include-dashboard=false", "--no-monitor"]
        where += [f"--ray-client-server-port={_free_port(start.own_ip)}"]
    else:
        where = [f"--address={start.address}"]
    return [sys.executable, "-P", "-c", _ENTRY, "start", "--block", "--disable-usage-stats", *where, *flags]


def variables(start: Start, folder: Path, current: Mapping[str, str]) -> dict[str, str]:
    """Return the whole environment of Ray on this node.

    GPUs are named by UUID: Ray hands out what it finds in CUDA_VISIBLE_DEVICES, and counts GPUs in another order than CUDA does.
    """
    access = rayenv.Access(address=start.address, token=start.token, loopback_only=start.loopback_only)
    wanted, dropped = rayenv.environment(access, folder, current)
    if start.head:  # so that a head that ended and came back still knows its nodes
        wanted |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "gcs")}
    kept = {name: value for name, value in current.items() if name not in dropped}
    return kept | wanted | {"CUDA_VISIBLE_DEVICES": ",".join(start.gpus)}


def backoff_s(failures: int) -> float:
    """Return how long to wait after so many failures in a row."""
    return min(_BACKOFF_MOST_S, float(2 ** max(0, failures - 1)))


def visible(devices: Sequence[Device], chosen: str | None) -> tuple[str, ...]:
    """Return the UUIDs of the usable GPUs, only those that a CUDA_VISIBLE_DEVICES names by UUID or position if there is one."""
    usable = {str(at): d.uuid for at, d in enumerate(devices) if d.unusable_reason is None}
    if chosen is None:
        return tuple(usable.values())
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    return tuple(u for at, u in usable.items() if any(name == at or u.startswith(name) for name in names))


def gist(log: str) -> str:
    """Return the one line of Ray's log that says why it ended."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    died = [match[0] for line in lines if (match := re.search(r"\w+ \[exit code=-?\w+\]", line))]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    return ", ".join(died) or (raised or lines or [""])[-1][:300]


def supervise(start: Start, say: Say) -> None:
    """Run a node until a signal to stop comes, starting Ray again whenever it ends. Only for the main thread of a process.

    Raises:
        FailureError: Ray does not start at all.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what Ray leaves behind becomes ours, to be ended
    with rayenv.private_folder() as folder, _stoppable(), contextlib.suppress(_Stopped):
        failures, was_up = 0, False
        while True:
            began = time.monotonic()
            why = None if not was_up or start.head else _hindrance(start)
            with _ray(start, folder, why) as process:
                if process is not None:
                    if _comes_up(process, folder):
                        _announce(start, say, again=was_up)
                        was_up = True
                        process.wait()
                    why = _last_words(folder, process)
            took_s = time.monotonic() - began
            if not was_up and (failures or took_s < _HASTY_S):
                msg = f"cannot start Ray: {why}"
                raise FailureError(msg)
            failures = 1 if was_up and took_s > _SETTLED_S else failures + 1
            what = "this node has left the fleet" if was_up else "Ray did not start"
            say(f"{what} ({why}); next try in {backoff_s(failures):.0f} s")
            time.sleep(backoff_s(failures))
    say("stopped")


# --- Ray as a child ------------------------------------------------------------------------------------------------------


class _Stopped(BaseException):
    """A signal said so. No `except Exception` on the way may take it for an error."""


@contextmanager
def _stoppable() -> Iterator[None]:
    def stop(_number: int, _frame: object) -> None:
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN)  # one is enough: the end takes a few seconds, and must not be cut short
        raise _Stopped

    before = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def _ray(start: Start, folder: Path, hindrance: str | None) -> Iterator[subprocess.Popen[bytes] | None]:
    """Hold Ray, unless something speaks against starting it; end it and all it has left behind."""
    if hindrance:
        yield None
        return
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command(start),
            env=variables(start, folder, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us to answer
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        process.kill()
        process.wait()
        sweep()


def _comes_up(process: subprocess.Popen[bytes], folder: Path) -> bool:
    deadline = time.monotonic() + _UP_S
    while process.poll() is None and time.monotonic() < deadline:
        if _UP in _log(folder):
            return True
        time.sleep(_POLL_S)
    return False


def _log(folder: Path) -> str:
    with (folder / "log").open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return file.read().decode(errors="replace")


def _last_words(folder: Path, process: subprocess.Popen[bytes]) -> str:
    code = process.poll()
    return f"it did not come up in {_UP_S:.0f} s" if code is None else gist(_log(folder)) or f"exit code {code}"


def _hindrance(start: Start) -> str | None:
    """Return why joining again would come to nothing, or None: it costs Ray 20 s to find that out."""
    try:
        rayenv.check(start.address, start.token)
    except MisuseError as err:
        return str(err)
    return None


def _announce(start: Start, say: Say, *, again: bool) -> None:
    gpus = f"{len(start.gpus)} GPU(s)" if start.gpus else "no GPU, its CPU only"
    if again:
        say(f"this node is back: {gpus}")
    elif not start.head:
        say(f"node {start.own_ip} has joined the fleet of {start.address} with {gpus}")
    else:
        say(f"head {start.address} with {gpus}" + ("" if start.loopback_only else "; Ray listens on every interface"))
        say(f"token {start.token} (whoever has it may run anything on every node: see docs/threat-model.md)")
        say(
            "join only from this machine: give the head an address on a network with --bind"
            if start.loopback_only
            else f"join copy the token to the other machine, then: harness node start --join {start.address} --token-file FILE"
        )


# --- what we start with --------------------------------------------------------------------------------------------------


def _gpus() -> tuple[str, ...]:
    return visible(nvml_devices(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def _plain_ip(bind: str) -> str:
    """Return an address as Ray takes it: 127.0.0.1 is the one of the loopback that Ray keeps to itself."""
    try:
        ip = ipaddress.ip_address(_HOME if bind == "localhost" else bind)
    except ValueError as err:
        msg = f"{bind!r} is no IP address: use one of this machine's, such as 10.0.0.1"
        raise MisuseError(msg) from err
    if ip.is_unspecified or (ip.is_loopback and str(ip) != _HOME):
        msg = f"{bind!r} is no address for others to find this node at: use one of this machine's, such as 10.0.0.1, or 127.0.0.1"
        raise MisuseError(msg)
    return str(ip)


def _refuse_public(ip: str) -> None:
    if ipaddress.ip_address(ip).is_global and os.environ.get("RAY_USE_TLS") != "1":
        msg = (
            f"{ip} is a public address, and the token would cross the network in clear: "
            "use an address of a private network or VPN, or set up Ray's TLS (RAY_USE_TLS=1 and its certificates)"
        )
        raise MisuseError(msg)


def _refuse_taken(ip: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
        except OverflowError as err:
            msg = f"{port} is no port: use one from 1 to 65535"
            raise MisuseError(msg) from err
        except OSError as err:
            taken = err.errno == errno.EADDRINUSE
            what = (
                f"something listens on port {port} of {ip} already" if taken else f"{ip} is no address of this machine"
            )
            advice = "stop it, or choose another --port" if taken else "`ip addr` lists them"
            msg = f"{what}: {advice}"
            raise MisuseError(msg) from err


def _seen_from(host: str, port: int) -> str:
    """Return the address of this machine by which another one sees it. No packet is sent."""
    family, kind, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, proto) as probe:
        probe.connect(where)
        return str(probe.getsockname()[0])


def _free_port(ip: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
        probe.bind((ip, 0))
        return int(probe.getsockname()[1])
