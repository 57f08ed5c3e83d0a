"""Importing this makes Numba load all that it loads at the first compilation: nearly a second that a process forked later need not spend."""

from __future__ import annotations

from numba import njit  # noqa: TID253 - to import this module is to want Numba loaded

__all__: list[str] = []

njit(nogil=True)(lambda n: n + 1)(1)
