"""Benchmarks an OpenAI-compatible server by its address: what `harness serve-bench` does, for programs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from harness.errors import FailureError, MisuseError
from harness.inference.client import Endpoint
from harness.inference.serving import bench

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.inference.serving import Plan, Progress, ServeReport

__all__ = ["serve_bench"]


def serve_bench(  # noqa: PLR0913 - what there is to say about a server
    url: str,
    plan: Plan,
    *,
    model: str | None = None,
    key: str | None = None,
    chat: bool = True,
    progress: Progress | None = None,
    joules: Callable[[], float | None] = lambda: None,
) -> ServeReport:
    """Measure what an OpenAI-compatible endpoint gives its users.

    Args:
        url: of the endpoint, such as http://127.0.0.1:8000/v1.
        plan: the loads to put on it, and what follows from which seed.
        model: what to ask for; by default the only model that the endpoint lists.
        key: of the endpoint; sent to it, and written nowhere.
        chat: use /chat/completions; otherwise /completions.
        progress: is told how far it is.
        joules: reads a counter of the energy that the server's device has spent; None where there is none.

    Raises:
        MisuseError: the address is none, the model is not named though there are several, or the plan holds no load.
        FailureError: the server does not answer, or this client was the bottleneck.
    """
    return asyncio.run(_bench(url, plan, model, key, progress or _Nobody(), joules, chat=chat))


async def _bench(  # noqa: PLR0913 - as above
    url: str,
    plan: Plan,
    model: str | None,
    key: str | None,
    progress: Progress,
    joules: Callable[[], float | None],
    *,
    chat: bool,
) -> ServeReport:
    async with Endpoint(url, model=model or "", key=key, chat=chat) as endpoint:
        endpoint.model = model or await _only_model(endpoint, plan.timeout_s)
        return await bench(
            endpoint,
            plan,
            progress,
            name=endpoint.base,
            model=endpoint.model,
            api="chat completions" if chat else "completions",
            joules=joules,
        )


async def _only_model(endpoint: Endpoint, timeout_s: float) -> str:
    try:
        async with asyncio.timeout(timeout_s):
            names = await endpoint.models()
    except TimeoutError as err:
        msg = f"{endpoint.base}/models did not answer within {timeout_s:g} s; name a model with --model"
        raise FailureError(msg) from err
    if len(names) != 1:
        listed = ", ".join(names[:20]) or "none"
        msg = f"{endpoint.base} serves {len(names)} models; name one with --model: {listed}"
        raise MisuseError(msg)
    return names[0]


class _Nobody:
    def begins(self, what: str, steps: int) -> None:
        """Nobody is told."""

    def step(self) -> None:
        """Nobody is told."""
