"""Which machine this is: a name for it that is the same tomorrow, and no other machine's."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path

__all__ = ["in_container", "machine_uuid"]

_RANDOM_MAC = 1 << 40  # the bit that `uuid.getnode` sets where there is no address, and it draws one in each process


def in_container(root: Path = Path("/"), env: Mapping[str, str] = os.environ) -> bool:
    """Tell whether this process lives in a container, by the marks that Docker, Podman, LXC, systemd and Kubernetes leave."""
    marked = any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv"))
    return marked or "container" in env or "KUBERNETES_SERVICE_HOST" in env


def machine_uuid(model: str, root: Path = Path("/"), env: Mapping[str, str] = os.environ) -> str:
    """Name a machine with such a CPU by a digest, so that its machine-id itself is not published.

    Images of containers come with an empty machine-id, or with one that all their containers share: there the host's name counts, too.
    """
    try:
        machine = (root / "etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    if machine in {"", "uninitialized"}:
        mac = uuid.getnode()
        machine = socket.gethostname() if mac & _RANDOM_MAC else f"{mac:012x}"
    if in_container(root, env):
        machine += f" {socket.gethostname()}"
    return f"CPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'{machine} {model}')}"
