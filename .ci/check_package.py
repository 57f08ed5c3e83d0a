"""Check that a wheel and an sdist hold what they should and no junk; or print the commands that the README shows a newcomer."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

_JUNK = re.compile(
    r"(^|/)(\.venv[^/]*|__pycache__|\.[a-z_]+_cache|dist|build|node_modules|\.git|\.hypothesis)/|\.(pyc|partial|orig|rej|swp)$|uv\.lock$"
)
_WHEEL = re.compile(r"(harness/|gpu_assay-[^/]+\.dist-info/)")
_NEEDED = ("harness/__main__.py", "harness/scoring/data/", "harness/kernels/gemm.py")
_SDIST_NEEDED = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "harness/__init__.py", "tests/conftest.py")
_MOST_BYTES = 8 << 20
_LEAST = 4  # commands


def main(args: list[str]) -> int:
    """Check the files named; exit 1 with what is wrong."""
    if args[0] == "--commands":
        sys.stdout.write("".join(f"{line}\n" for line in newcomer(Path(args[1]).read_text())))
        return 0
    faults = [fault for name in args for fault in _faults(Path(name))]
    sys.stderr.write("".join(f"{fault}\n" for fault in faults))
    return int(bool(faults))


def newcomer(readme: str) -> list[str]:
    """Return the commands of the block under "In a minute", without their comments."""
    block = readme.split("### In a minute", 1)[1].split("\n#", 1)[0]
    found = [line.strip().split("  #")[0].strip() for line in block.splitlines() if line.startswith("    harness ")]
    if len(found) < _LEAST:
        msg = f"README.md shows {len(found)} commands under 'In a minute', not {_LEAST} or more"
        raise SystemExit(msg)
    return found


def _faults(path: Path) -> list[str]:
    if path.suffix == ".whl":
        names, needed = zipfile.ZipFile(path).namelist(), _NEEDED
        faults = [f"{path.name}: {name} has no place in a wheel" for name in names if not _WHEEL.match(name)]
    else:
        with tarfile.open(path) as archive:
            names, needed = [name.partition("/")[2] for name in archive.getnames()], _SDIST_NEEDED
        faults = []
    faults += [f"{path.name}: {name} is junk" for name in names if _JUNK.search(name)]
    faults += [f"{path.name}: {want} is missing" for want in needed if not any(n.startswith(want) for n in names)]
    if path.stat().st_size > _MOST_BYTES:
        faults.append(f"{path.name}: {path.stat().st_size} bytes are more than {_MOST_BYTES}")
    return faults


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
