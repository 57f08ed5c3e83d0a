"""Workload profiles: how a workload spends the reference node's time, and the memory that it needs.

A file of one's own is TOML:

    name = "my-model"
    memory_gib = 24
    [shares]
    gemm_bf16 = 0.7
    mem = 0.3
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path

from harness.codec import digest
from harness.errors import MisuseError
from harness.scoring.exact import plain
from harness.scoring.tables import table

__all__ = ["Profile", "load_profile", "profile_of", "profiles", "work_classes"]

_GIB = 1 << 30
_KEYS = ("name", "memory_gib", "shares")
_DECIMALS = 9
_MOST_BYTES = 2**53 - 1  # that a quote can name exactly


@dataclass(frozen=True, kw_only=True)  # no slots: what is derived is kept
class Profile:
    """Shares of the reference node's time by class of work, and the memory without which nothing runs.

    Raises:
        MisuseError: the shares are not positive, do not sum to 1, or name a class that there is not.
    """

    name: str
    shares: Mapping[str, Decimal]
    memory_bytes: int | None = None
    ours: bool = False  # one of the package's own

    def __post_init__(self) -> None:
        """Refuse what shares out more or less than one whole."""
        known = work_classes()
        for work_class, share in self.shares.items():
            if work_class not in known:
                raise MisuseError(_unknown("class of work", work_class, known))
            if not isinstance(share, Decimal) or not share.is_finite() or not 0 < share <= 1:
                message = (
                    f"profile {self.name!r}: the share of {work_class} is {share}; it should be more than 0, up to 1"
                )
                raise MisuseError(message)
            if share != round(share, _DECIMALS):
                message = f"profile {self.name!r}: {work_class} is {share}; at most {_DECIMALS} decimals"
                raise MisuseError(message)
        total = sum(self.shares.values(), Decimal(0))
        if total != 1:
            message = f"profile {self.name!r}: the shares sum to {total}; they should sum to 1"
            raise MisuseError(message)
        if self.memory_bytes is not None and not 0 <= self.memory_bytes <= _MOST_BYTES:
            message = f"profile {self.name!r}: memory_bytes is {self.memory_bytes}; it should be 0 or more, up to {_MOST_BYTES}"
            raise MisuseError(message)

    @cached_property
    def fractions(self) -> dict[str, Fraction]:
        """The shares as fractions, in the order of their names."""
        return {name: Fraction(self.shares[name]) for name in sorted(self.shares)}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the profile says."""
        told = {name: plain(self.shares[name]) for name in self.shares}
        return digest({"name": self.name, "shares": told, "memory_bytes": self.memory_bytes})


@cache
def work_classes() -> tuple[str, ...]:
    """Return the classes of work that the unit has a constant for."""
    return tuple(table("reference")["rates"])


@cache
def profiles() -> Mapping[str, Profile]:
    """Return the package's own profiles by name."""
    return {
        name: Profile(
            name=name,
            shares={work_class: Decimal(share) for work_class, share in row["shares"].items()},
            memory_bytes=None if row["memory_gib"] is None else row["memory_gib"] * _GIB,
            ours=True,
        )
        for name, row in table("profiles")["profiles"].items()
    }


def profile_of(profile: str | Profile) -> Profile:
    """Return a profile by its name, from a file that ends in .toml, or as it is.

    Raises:
        MisuseError: there is no such profile, or its file is none.
    """
    if isinstance(profile, Profile):
        return profile
    if profile.endswith(".toml"):
        return load_profile(profile)
    known = profiles()
    if profile not in known:
        raise MisuseError(_unknown("profile", profile, sorted(known)))
    return known[profile]


def load_profile(path: str | Path) -> Profile:
    """Read a profile from a TOML file.

    Raises:
        MisuseError: the file cannot be read, or does not hold a profile.
    """
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"), parse_float=Decimal)
    except OSError as err:
        message = f"cannot read the profile {str(path)!r}: {err.strerror}"
        raise MisuseError(message) from err
    except ValueError as err:  # not UTF-8, or not TOML
        message = f"the profile {str(path)!r} is not TOML: {err}"
        raise MisuseError(message) from err
    try:
        return _from(document)
    except MisuseError as err:
        message = f"{path}: {err}"
        raise MisuseError(message) from err


def _from(document: Mapping[str, object]) -> Profile:
    for key in document:
        if key not in _KEYS:
            raise MisuseError(_unknown("key", key, _KEYS))
    name, shares, memory = (document.get(key) for key in ("name", "shares", "memory_gib"))
    if not isinstance(name, str) or not name or name in profiles():
        message = f"name is {name!r}; it should be a text of your own, not one of ours"
        raise MisuseError(message)
    if not isinstance(shares, dict) or not shares:
        message = f"shares is {shares!r}; it should be a table such as `[shares]` with `mem = 1.0`"
        raise MisuseError(message)
    if memory is not None and not _is_size(memory):
        message = f"memory_gib is {memory!r}; it should be a number, 0 or more"
        raise MisuseError(message)
    return Profile(
        name=name,
        shares={work_class: _share(work_class, share) for work_class, share in shares.items()},
        memory_bytes=None if memory is None else int(Decimal(str(memory)) * _GIB),
    )


def _is_size(memory: object) -> bool:
    if isinstance(memory, bool) or not isinstance(memory, int | Decimal):
        return False
    return Decimal(memory).is_finite() and memory >= 0


def _share(work_class: str, share: object) -> Decimal:
    if isinstance(share, bool) or not isinstance(share, int | Decimal):
        message = f"the share of {work_class} is {share!r}; it should be a number, more than 0, up to 1"
        raise MisuseError(message)
    return Decimal(share)


def _unknown(what: str, given: str, known: tuple[str, ...] | list[str]) -> str:
    near = get_close_matches(given, known, n=1)
    hint = f"; did you mean {near[0]!r}" if near else ""
    return f"no {what} {given!r}{hint}; there are {', '.join(known)}"
