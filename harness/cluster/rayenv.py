"""What Ray must be told before it is imported or started, and what must be known of a cluster before Ray is let near it.

Ray is not imported here. It reads its environment once; a wrong address, version or token costs it 20 seconds to minutes and a
page of traceback, and one request of ours a hundredth of a second; and what it writes goes to descriptors 1 and 2 from threads
that no logging setting reaches.

Promised: a cluster that `local` or `harness node` starts admits nobody without its token; the token is in a file of mode 0600 and
never in the environment of a process.
Not promised: that whoever has the token means well (see docs/threat-model.md), nor, without TLS, that nobody listens on the wire.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TextIO

from harness.errors import MisuseError

__all__ = [
    "TOKEN_PATH_VARIABLE",
    "Access",
    "applied",
    "check",
    "default_token",
    "environment",
    "is_loopback",
    "make_token",
    "prepare",
    "private_folder",
    "quiet",
    "read_token",
    "split",
]

TOKEN_PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"  # noqa: S105 - the name of a variable
_KNOCK_S = 5.0
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_VERSION_FIELD = 2  # of CheckAliveReply
_LENGTH_DELIMITED = 2
_DROPPED = (
    "RAY_ADDRESS",  # a stray cluster of this machine must not decide where we run
    "RAY_AUTH_TOKEN",  # every worker, and whoever may read its environment, would have it
    "RAY_NAMESPACE",
    "RAY_RUNTIME_ENV_HOOK",
)
_ALWAYS = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` it would pack the working folder and restart the workers
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # at Ray's own 15 a neighbour at 0 leaves a worker a twentieth of a core
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_metrics_collection": "0",  # it would answer anybody, token or not
    "DASHBOARD_METRIC_PORT": "-1",  # likewise; no port has this number, so it is not opened
    "RAY_prestart_worker_first_driver": "0",  # a Python for each core, the moment somebody connects
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
}
# A node that is cut off is given up after about 20 s, not after minutes. Head, nodes and driver must agree on these.
_USUALLY = {
    "RAY_health_check_initial_delay_ms": "3000",
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "10000",
}
_LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # with 0 Ray keeps 127.0.0.1 as it is, and listens there alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to get into a cluster: by which token, if it asks for one, and whether it is to be had through 127.0.0.1 alone."""

    address: str
    token: Path | None
    loopback_only: bool = False


def environment(
    access: Access, folder: Path | None = None, current: Mapping[str, str] | None = None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the variables to set for Ray, and those to remove; `current` is the environment that may have its say."""
    present = os.environ if current is None else current
    variables = _ALWAYS | {name: present.get(name, value) for name, value in _USUALLY.items()}
    variables["RAY_AUTH_MODE"] = "token" if access.token else "disabled"
    if access.token:
        variables[TOKEN_PATH_VARIABLE] = str(access.token)
    if folder:
        variables["RAY_TMPDIR"] = str(folder)
    variables[_LOOPBACK_ONLY] = "0" if access.loopback_only else "1"
    return variables, _DROPPED


@contextmanager
def applied(variables: Mapping[str, str], dropped: tuple[str, ...]) -> Iterator[None]:
    """Change this process's environment for a while, and what a Ray that is already imported remembers of it."""
    before = {name: os.environ.get(name) for name in (*variables, *dropped)}
    for name in dropped:
        os.environ.pop(name, None)
    os.environ.update(variables)
    if constants := sys.modules.get("ray._private.ray_constants"):
        constants.ENABLE_RAY_CLUSTER = variables[_LOOPBACK_ONLY] != "0"  # type: ignore[attr-defined]
    if raylet := sys.modules.get("ray._raylet"):
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def prepare(address: str, token: Path | None = None) -> Iterator[Access]:
    """Make this process ready to import Ray and go to a cluster, for the length of a context; `local` is one yet to be started.

    Raises:
        MisuseError: there is no such cluster, or none that we may enter.
    """
    if address != "local":
        access = check(address, token)
        with applied(*environment(access)):
            yield access
        return
    with private_folder() as folder:
        access = Access(address=address, token=folder / "token", loopback_only=True)
        make_token(folder / "token")
        with applied(*environment(access, folder)):
            yield access


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder for Ray's sessions that only its owner can enter, and remove it afterwards.

    Its path is short whatever TMPDIR is: Ray puts sockets into it, whose paths may have 107 bytes.
    """
    folder = Path(tempfile.mkdtemp(prefix="harness-ray-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- the token -----------------------------------------------------------------------------------------------------------


def default_token() -> Path:
    """Return where a cluster's token is kept: where Ray was told to look, else beside our settings."""
    if told := os.environ.get(TOKEN_PATH_VARIABLE):
        return Path(told)
    root = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return root / "harness" / "fleet-token"


def make_token(path: Path) -> bool:
    """Make a token unless there is one; return whether it was made.

    Raises:
        MisuseError: the file cannot be written.
    """
    if path.exists():
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Created with its mode, which Ray does not do: there is no moment at which others could read it.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as err:
        msg = f"cannot write a token to {str(path)!r}: {err.strerror}"
        raise MisuseError(msg) from err
    with os.fdopen(fd, "w") as file:
        file.write(secrets.token_hex(32))
    return True


def read_token(path: Path) -> str:
    """Read a token.

    Raises:
        MisuseError: there is none, or others can read it too.
    """
    try:
        text, mode = path.read_text(encoding="ascii").strip(), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as err:
        why = err.strerror if isinstance(err, OSError) else "it is not text"
        msg = f"cannot read the token {str(path)!r}: {why}; copy it from the head of the fleet, and chmod 600 it"
        raise MisuseError(msg) from err
    if mode & 0o077:
        msg = f"the token {str(path)!r} can be read by others (mode {mode & 0o777:04o}): chmod 600 {path}"
        raise MisuseError(msg)
    if not text or any(c.isspace() or not c.isprintable() for c in text):
        msg = f"{str(path)!r} holds no token: one line of letters and digits is wanted"
        raise MisuseError(msg)
    return text


# --- is it there, is it Ray, are we let in -------------------------------------------------------------------------------


def split(address: str) -> tuple[str, int]:
    """Return host and port of an address.

    Raises:
        MisuseError: it is not of the form HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        msg = f"{address!r} is not the address of a Ray cluster: use HOST:PORT of its head, such as 10.0.0.1:6379, or local"
        raise MisuseError(msg)
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine as only itself can reach it."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def check(address: str, token: Path | None = None) -> Access:
    """Find out, without Ray, whether a cluster answers at an address, runs our version of Ray, and lets us in.

    A cluster that lets anybody in is entered on this machine itself, and elsewhere only if RAY_AUTH_MODE=disabled says that it is
    meant: on a network, whoever reaches such a cluster owns it, and us.

    Raises:
        MisuseError: it does not, with what would be right.
    """
    host, port = split(address)
    try:
        socket.create_connection((host, port), timeout=_KNOCK_S).close()
    except (OSError, OverflowError) as err:
        msg = f"no Ray cluster answers at {address!r}: {err}; use HOST:PORT of its head, or local"
        raise MisuseError(msg) from err
    path = token or default_token()
    if os.environ.get("RAY_USE_TLS") == "1":  # its certificates are for Ray itself to present
        read_token(path)
        return Access(address=address, token=path)
    reply, refused = _ask(address, None)
    secured = refused
    if secured:
        reply, refused = _ask(address, read_token(path))
        if refused:
            msg = f"the Ray cluster at {address!r} refuses the token in {str(path)!r}: copy the one of its head, and chmod 600 it"
            raise MisuseError(msg)
    _same_version(address, _version(reply))
    if not secured and not is_loopback(host) and os.environ.get("RAY_AUTH_MODE") != "disabled":
        msg = (
            f"the Ray cluster at {address!r} lets in anybody who can reach it: "
            "start it with `harness node start --head`, which asks for a token"
        )
        raise MisuseError(msg)
    return Access(
        address=address, token=path if secured else None, loopback_only=is_loopback(host) and not _open_outside(port)
    )


def _ask(address: str, token: str | None) -> tuple[bytes, bool]:
    """Ask a head whether it lives; return its answer, or that it would not give one without a better token."""
    import grpc  # comes with Ray

    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options=options) as channel:
        try:
            call = channel.unary_unary(_ALIVE)
            headers = [("authorization", f"Bearer {token}")] if token else []
            return bytes(call(b"", timeout=_KNOCK_S, metadata=headers)), False
        except grpc.RpcError as err:
            if err.code() == grpc.StatusCode.UNAUTHENTICATED:
                return b"", True
            msg = (
                f"what listens at {address!r} is not the head of a Ray cluster ({err.code().name.lower()}); use HOST:PORT "
                "of its head, whose port is 6379 unless it was told otherwise, or local"
            )
            raise MisuseError(msg) from err


def _version(reply: bytes) -> str:
    """Read the version out of a CheckAliveReply; a message that is none, or says nothing, gives an empty string."""
    at = 0
    while at + 1 < len(reply) and reply[at] & 7 == _LENGTH_DELIMITED:
        field, length = reply[at] >> 3, reply[at + 1]
        if field == _VERSION_FIELD:
            return reply[at + 2 : at + 2 + length].decode(errors="replace")
        at += 2 + length
    return ""


def _same_version(address: str, theirs: str) -> None:
    ours = metadata.version("ray")
    if theirs != ours:
        told = f"Ray {theirs}" if theirs else "a version of Ray that does not say which"
        msg = f"the cluster at {address!r} runs {told}, and this machine {ours}: head and nodes must have the same"
        raise MisuseError(msg)


def _outward() -> str | None:
    """Return the address by which this machine goes out, as Ray would. No packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("8.8.8.8", 80))
        return str(probe.getsockname()[0])
    return None


def _open_outside(port: int) -> bool:
    outward = _outward()
    if outward is None:
        return False
    with contextlib.suppress(OSError):
        socket.create_connection((outward, port), timeout=_KNOCK_S).close()
        return True
    return False


# --- silence -------------------------------------------------------------------------------------------------------------


@contextmanager
def quiet(log: Path | None = None) -> Iterator[TextIO]:
    """Send what anything in this process writes to descriptors 1 and 2 to a file, and give a stream to the real stderr.

    `sys.stdout` and `sys.stderr` lead into the file as well: Ray's own threads print there. Whoever wants to be read meanwhile
    needs a copy of the descriptor made before, as `harness.cli.output.stderr` makes one, or this stream.
    """
    _flush()
    saved = [os.dup(fd) for fd in (1, 2)]
    with contextlib.ExitStack() as stack:
        for fd in saved:
            stack.callback(os.close, fd)
        file = stack.enter_context((log or Path(os.devnull)).open("ab"))
        stream = stack.enter_context(os.fdopen(os.dup(saved[1]), "w", buffering=1, errors="backslashreplace"))
        for fd in (1, 2):
            os.dup2(file.fileno(), fd)
        try:
            yield stream
        finally:
            _flush()
            for fd, was in zip((1, 2), saved, strict=True):
                os.dup2(was, fd)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
