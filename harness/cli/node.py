"""`harness node`: make this machine a node of a fleet."""

from __future__ import annotations

import click

from harness.cli.output import on_one_line

__all__ = ["node"]


@click.group()
def node() -> None:
    """Make this machine a node of a fleet."""


@node.command()
@click.option("--head", is_flag=True, help="Begin a fleet, which others then join.")
@click.option("--join", "address", metavar="ADDRESS", help="Join the fleet whose head is at HOST:PORT.")
@click.option(
    "--bind", metavar="IP", help="Address of this node; 127.0.0.1, which no other machine reaches, for a head."
)
@click.option("--port", default=6379, show_default=True, help="Port of the head.")
@click.option("--token-file", metavar="FILE", help="The fleet's token; made by the head if missing.")
def start(*, head: bool, address: str | None, bind: str | None, port: int, token_file: str | None) -> None:
    """Run a node in the foreground until Ctrl-C or SIGTERM.

    It is started again when Ray ends, and leaves nothing behind. With an address other than 127.0.0.1 Ray listens on every
    interface of the machine; whoever has the token may run anything on every node of the fleet.
    """
    from harness.cluster import nodes  # brings what asks the driver for GPUs

    nodes.node(
        head=head, join=address, bind=bind, port=port, token=token_file, say=lambda line: click.echo(on_one_line(line))
    )
