"""An array module like CuPy, on the CPU: its arrays refuse to come to the host unasked, and what is done to them is counted.

CuPy raises where NumPy is asked to take one of its arrays, but `float(x)`, `if x:` and `x.tolist()` wait for the device without a word. Here
they raise, as does an array of the host among those of the device.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

IDLE = {"reshape", "swapaxes", "moveaxis", "transpose", "empty", "empty_like"}  # nothing is computed
ASKED = {"asnumpy", "asarray"}


class HiddenTransferError(Exception):
    """Something would have waited for the device."""


class GuardedArray:
    """An array of the guarded module; `_held` is where it lies."""

    __array_ufunc__ = None

    def __init__(self, held: np.ndarray[Any, Any], module: GuardedModule) -> None:
        self._held = held
        self._module = module

    shape = property(lambda self: self._held.shape)
    dtype = property(lambda self: self._held.dtype)
    ndim = property(lambda self: self._held.ndim)
    size = property(lambda self: self._held.size)
    nbytes = property(lambda self: self._held.nbytes)
    T = property(lambda self: self._module.wrapped(self._held.T))

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[GuardedArray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        self._module.counted("take", key)
        return self._module.wrapped(self._held[self._module.bare(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._module.counts["put"] += 1
        self._held[self._module.bare(key)] = self._module.bare(value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("tolist", "item", "tobytes", "data", "ctypes"):
            raise HiddenTransferError(name)
        return self._module.method(self._held, name)


def _refuse(name: str) -> Callable[..., Any]:
    def refused(self: GuardedArray, *_: object, **__: object) -> Any:
        raise HiddenTransferError(name)

    return refused


def _operator(name: str) -> Callable[..., Any]:
    act = getattr(operator, name)

    def apply(self: GuardedArray, *others: Any) -> Any:
        module = self._module
        module.counts[name] += 1
        values = [module.bare(other) for other in others]
        if name.strip("_")[0] == "i" and name.strip("_") != "invert":
            self._held = act(self._held, *values)
            return self
        return module.wrapped(act(self._held, *values))

    return apply


def _reflected(name: str) -> Callable[..., Any]:
    act = getattr(operator, f"__{name}__")

    def apply(self: GuardedArray, other: Any) -> Any:
        self._module.counts[name] += 1
        return self._module.wrapped(act(self._module.bare(other), self._held))

    return apply


for _name in ("bool", "float", "int", "index", "array", "complex", "contains"):
    setattr(GuardedArray, f"__{_name}__", _refuse(f"__{_name}__"))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "matmul", "pow", "and", "or"):
    setattr(GuardedArray, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(GuardedArray, f"__i{_name}__", _operator(f"__i{_name}__"))
    setattr(GuardedArray, f"__r{_name}__", _reflected(_name))
for _name in ("neg", "invert", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(GuardedArray, f"__{_name}__", _operator(f"__{_name}__"))


class GuardedModule:
    """NumPy's functions for guarded arrays; `counts` tells how often each was called, views apart."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    @property
    def operations(self) -> int:
        """What a GPU would have been asked to do, but for copies from and to the host."""
        return sum(n for name, n in self.counts.items() if name not in ASKED)

    def bare(self, value: Any) -> Any:
        if isinstance(value, GuardedArray):
            return value._held
        if isinstance(value, tuple | list):
            return type(value)(map(self.bare, value))
        if isinstance(value, np.ndarray):
            msg = "an array of the host among those of the device"
            raise HiddenTransferError(msg)
        return value

    def wrapped(self, value: Any) -> Any:
        return GuardedArray(np.asarray(value), self) if isinstance(value, np.ndarray | np.generic) else value

    def counted(self, name: str, key: Any) -> None:
        parts = key if isinstance(key, tuple) else (key,)
        self.counts[name] += any(isinstance(part, GuardedArray | list) for part in parts)

    def method(self, held: np.ndarray[Any, Any], name: str) -> Callable[..., Any]:
        act = getattr(held, name)

        def call(*args: Any, **rest: Any) -> Any:
            idle = name in IDLE or (name == "astype" and rest.get("copy") is False and np.dtype(args[0]) == held.dtype)
            self.counts[name] += not idle
            out = act(*map(self.bare, args), **{k: self.bare(v) for k, v in rest.items()})
            return self.wrapped(out)

        return call

    def asnumpy(self, array: GuardedArray) -> np.ndarray[Any, Any]:
        self.counts["asnumpy"] += 1
        return array._held.copy()

    def asarray(self, array: Any) -> GuardedArray:
        if isinstance(array, GuardedArray):
            return array
        self.counts["asarray"] += 1
        return GuardedArray(np.array(array), self)

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found

        def call(*args: Any, **rest: Any) -> Any:
            self.counts[name] += name not in IDLE
            result = found(*map(self.bare, args), **{k: self.bare(v) for k, v in rest.items()})
            if isinstance(rest.get("out"), GuardedArray):
                return rest["out"]
            return self.wrapped(result)

        return call
