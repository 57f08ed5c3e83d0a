"""Packages of npm that tests hold ours against: the exact versions of interop/package.json, installed once into the user's cache.

modules = npmcache.modules()    # skips the test, with the reason, where there is no node or nothing can be fetched
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["modules"]

_PACKAGE = Path(__file__).parent / "interop" / "package.json"
_INSTALL_S = 240


def modules() -> Path:
    """Return `node_modules` with all that package.json names; skip where it cannot be had."""
    found = _installed()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@functools.cache
def _installed() -> Path | str:
    """Return the folder, or why there is none."""
    if missing := [name for name in ("node", "npm") if not shutil.which(name)]:
        return f"no {' and no '.join(missing)} on this machine"
    wanted = _PACKAGE.read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness" / "interop"
    home = cache / hashlib.sha256(wanted).hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{home.name}.lock").open("w") as lock:  # other workers wait for the one that installs
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "done").exists():
            home.mkdir(exist_ok=True)
            (home / "package.json").write_bytes(wanted)
            if failed := _npm_install(home):
                return failed
            (home / "done").touch()
    return home / "node_modules"


def _npm_install(home: Path) -> str | None:
    """Install; return why it did not come to an end."""
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
    try:
        ended = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False, timeout=_INSTALL_S)
    except subprocess.TimeoutExpired:
        return f"npm install took more than {_INSTALL_S} s"
    return f"npm install failed: {ended.stderr.strip()[-300:]}" if ended.returncode else None
