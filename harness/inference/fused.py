"""Decoding on a GPU as fast as its memory allows: a handful of our own kernels a layer, replayed as one CUDA graph.

    model = Model(spec, weights, cupy, dtype="float16", keep_packed=True)
    fused = FusedModel(model, backend)
    cache = fused.cache(batch=1, capacity=2048)
    logits = fused.forward(prompt[None], cache)            # many tokens: the array path
    tokens = fused.decode(cache, logits.argmax(), 128)     # one by one: the fused path, which never waits for the host

`FusedModel` has the interface of `Model` and shares its weights and its cache, so the two can take turns on one cache. A step of one
token goes through the kernels of `fused_plan`; everything else goes to the model. On a CPU the kernels' twins run, which is slow, and
meant for tests.

A graph is captured after a first step without one, which loads the kernels. Where capturing fails the step is launched kernel by
kernel, and `capture_failure` says why. What is not covered: batches, and models that `refusal` names.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harness.errors import FailureError, MisuseError
from harness.inference.fused_plan import Buffers, Launch, launches_per_token, plan, refusal

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend, Launcher
    from harness.inference.cache import Cache
    from harness.inference.model import Counts, Model, Watch

__all__ = ["FusedModel", "Path", "launches_per_token", "refusal"]

Path = Literal["graph", "eager"]


class FusedModel:
    """A model whose single tokens are decoded by fused kernels.

    Args:
        model: holds the weights and takes in prompts; all of its layers are loaded. With `keep_packed` its matrices of 8 and 4 bits are
            multiplied as they are.
        backend: the device that the model is on.
        path: how steps are launched: "graph" (None: that too, where it can be captured) or "eager".

    Attributes:
        capture_failure: why there is no graph, once one has been tried; None if there is one or none was tried.

    Raises:
        MisuseError: the model cannot be fused; the message says why. The caller then stays with the model itself.
    """

    def __init__(self, model: Model, backend: Backend, *, path: Path | None = None) -> None:
        reason = refusal(model.spec, model.ops.dtype.name)
        if reason is None and backend.xp is not model.xp:
            reason = "its arrays are not the backend's"
        if reason is not None:
            msg = f"{model.spec.name} cannot be fused: {reason}"
            raise MisuseError(msg)
        self.model, self.spec, self.xp = model, model.spec, model.xp
        self.launches_per_token = launches_per_token(model.spec)
        self.capture_failure: str | None = None
        self._backend, self._wanted = backend, path
        self._launchers: dict[str, Launcher] = {}
        self._session: _Session | None = None

    @property
    def path(self) -> Path:
        """How the next step of the cache in use is launched; "eager" before there is a graph."""
        return "graph" if self._session is not None and self._session.graph is not None else "eager"

    def cache(self, batch: int, capacity: int) -> Cache:
        """Take memory as `Model.cache` does; rows of a batch of several are left to the model."""
        return self.model.cache(batch, capacity)

    def forward(
        self,
        tokens: Any,
        cache: Cache,
        *,
        counts: Counts | None = None,
        logits: Literal["last", "all", "none"] = "last",
        watch: Watch | None = None,
    ) -> Array | None:
        """Take tokens in, as `Model.forward` does; a single one that nobody watches through the fused kernels.

        The logits of a single token are the step's own memory: the next step writes over them.
        """
        if tuple(np.shape(tokens)) != (1, 1) or counts is not None or watch is not None:
            return self.model.forward(tokens, cache, counts=counts, logits=logits, watch=watch)
        session = self._begin(cache, tokens, 1, None)
        session.step(self._wanted)
        self._finish(cache, session, 1)
        if logits == "none":
            return None
        found = session.buffers.logits
        return found[None] if logits == "last" else found[None, None]

    def decode(self, cache: Cache, token: Any, steps: int, *, forced: Any = None) -> Array:
        """Take in a token, then each time the one that follows; the host waits for nothing.

        Args:
            cache: of one row, with room for `steps` tokens; it takes them in.
            token: the first token, a number or an array of one.
            steps: how many tokens are taken in, at least 1.
            forced: (steps,) tokens of the host to take in after each step instead of the likeliest; the last is taken in by none.

        Returns:
            (steps,) int32 on the device: the likeliest token after each step, forced or not.

        Raises:
            MisuseError: the cache has no room, or a token is none of the model's.
            FailureError: path "graph" was asked for, and it cannot be captured.
        """
        if steps < 1:
            msg = f"{steps!r} steps cannot be decoded; at least 1 can"
            raise MisuseError(msg)
        session = self._begin(cache, token, steps, forced)
        for _ in range(steps):
            session.step(self._wanted)
        self._finish(cache, session, steps)
        return session.buffers.likeliest[:steps].copy()

    def _begin(self, cache: Cache, token: Any, steps: int, forced: Any) -> _Session:
        if self._session is None or self._session.cache is not cache:
            self._session = _Session(self.xp, cache, *plan(self.model, cache, self._backend, self._launchers))
        length = int(cache.lengths[0])
        if length + steps > cache.capacity:
            msg = f"row 0 holds {length} of {cache.capacity} tokens; {steps} more do not fit"
            raise MisuseError(msg)
        token = np.asarray(token) if not hasattr(token, "shape") else token
        following = None if forced is None else np.asarray(forced)
        if following is not None and following.shape != (steps,):
            msg = f"forced tokens have the shape {following.shape}; it must be ({steps},)"
            raise MisuseError(msg)
        for given in (token, following):
            if isinstance(given, np.ndarray) and not ((given >= 0) & (given < self.spec.vocab)).all():
                msg = f"tokens {given.tolist()} are not all among {self.spec.name}'s, which are 0 to {self.spec.vocab - 1}"
                raise MisuseError(msg)
        self._session.begin(token, length, following)
        return self._session

    def _finish(self, cache: Cache, session: _Session, steps: int) -> None:
        cache.advance([steps])
        self.capture_failure = session.capture_failure


class _Session:
    """The launches for one cache, and their graph once there is one."""

    def __init__(self, xp: Any, cache: Cache, buffers: Buffers, launches: tuple[Launch, ...]) -> None:
        self.cache, self.buffers, self.launches, self._xp = cache, buffers, launches, xp
        self.graph: Any = None
        self.capture_failure: str | None = None
        self._loaded = False

    def begin(self, token: Any, position: int, forced: Any) -> None:
        """Say what the next step takes in and where it stands, and what the steps after it take in."""
        b, xp = self.buffers, self._xp
        on_host = isinstance(token, np.ndarray)
        start = [int(token.reshape(-1)[0]) if on_host else 0, position, 0]
        b.state[...] = xp.asarray(np.array(start, dtype=np.int32))
        if not on_host:
            b.state[:1] = token.reshape(-1)[:1]
        if forced is None:
            b.forced.fill(-1)
        else:
            b.forced[: len(forced)] = xp.asarray(forced.astype(np.int32))

    def step(self, wanted: Path | None) -> None:
        """Enqueue one step."""
        if wanted != "eager" and self._loaded and self.graph is None and self.capture_failure is None:
            self.graph = self._captured()
        if wanted == "graph" and self.capture_failure is not None:
            msg = f"the step cannot be captured: {self.capture_failure}"
            raise FailureError(msg)
        if self.graph is not None and wanted != "eager":
            self.graph.launch()
            return
        for launch in self.launches:
            launch()
        self._loaded = True

    def _captured(self) -> Any:
        """Return the step as a graph; None where it cannot be captured. Nothing runs meanwhile."""
        if self._xp is np:
            self.capture_failure = "a CPU has no graphs"
            return None
        # The default stream cannot be captured, and a stream that waits for it would draw it in.
        stream = self._xp.cuda.Stream(non_blocking=True)
        try:
            with stream:
                stream.begin_capture()
                try:
                    for launch in self.launches:
                        launch()
                except BaseException:
                    with suppress(
                        RuntimeError
                    ):  # the capture is void; what was wrong is told by what is raised already
                        stream.end_capture()
                    raise
                return stream.end_capture()
        except (RuntimeError, NotImplementedError) as err:  # a driver's refusal, or CuPy's own
            self.capture_failure = f"{type(err).__name__}: {err}"
            return None
