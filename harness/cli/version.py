"""`harness --version`: all that a report of a defect should say, without importing any of it."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from harness.device.machine import in_container

__all__ = ["told", "version_lines"]

_PACKAGE = "gpu-assay"
_SHOWN = ("numpy", "numba", "pandas", "pyarrow", "ray", "click", "rich")
_CUDA = ("cupy-cuda12x", "cupy-cuda13x", "numba-cuda", "nvidia-ml-py", "cuda-bindings", "nvidia-cuda-nvrtc")
_CUDA_MAJOR = re.compile(r"cupy-cuda(\d+)x")


def told(root: Path = Path("/")) -> str:
    """Return the version and what else matters, a line each."""
    return "\n".join(version_lines(root))


def version_lines(root: Path = Path("/")) -> Iterator[str]:
    """Yield the lines; `root` is where /proc is."""
    yield f"harness, version {_version(_PACKAGE) or 'unknown'}"
    yield f"Python    {platform.python_version()} {platform.python_implementation()}, {sys.executable}"
    yield f"platform  {platform.platform()}, {os.cpu_count()} CPUs{_container(root)}"
    yield f"driver    {_driver(root)}"
    yield f"packages  {_packages(_SHOWN)}"
    yield f"CUDA      {_packages(_CUDA) or 'no CUDA packages'}{_cuda_major()}"


def _packages(names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {version}" for name in names if (version := _version(name)))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cuda_major() -> str:
    found = [f"CUDA {m[1]}" for name in _CUDA if (m := _CUDA_MAJOR.fullmatch(name)) and _version(name)]
    return f" (for {', '.join(found)})" if found else ""


def _driver(root: Path) -> str:
    try:
        text = (root / "proc/driver/nvidia/version").read_text()
    except OSError:
        return "no NVIDIA driver loaded"
    return text.partition("\n")[0].removeprefix("NVRM version:").strip()


def _container(root: Path) -> str:
    return ", in a container" if in_container(root) else ""
