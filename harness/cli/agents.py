"""`harness mcp`: a market's tools for an agent."""

from __future__ import annotations

import click

__all__ = ["mcp"]


@click.command()
@click.argument("url", metavar="URL")
def mcp(*, url: str) -> None:
    """Give an agent the tools of the market at URL, over stdin and stdout (Model Context Protocol).

    The tools: list_devices, get_benchmark, quote_gpu, verify_quote, open_dispute. None of them pays. Needs the extras mcp and sign.
    """
    from harness.market.tools.agents import mcp as serve_tools

    serve_tools(url)
