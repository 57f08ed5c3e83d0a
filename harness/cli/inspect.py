"""`harness devices`, `harness list`, `harness schema`: what there is."""

from __future__ import annotations

import json

import click

from harness import codec, registry
from harness.cli import reference
from harness.cli.output import hushed, json_option, show, show_json
from harness.errors import HarnessError, MisuseError
from harness.render import text

__all__ = ["devices", "list_benchmarks", "schema"]


@click.command()
@click.option("--ray", metavar="ADDRESS", help="Look at a Ray cluster instead: HOST:PORT of its head, or local.")
@click.option("--check", is_flag=True, help="Hold what NVML, CUDA, /proc and /sys say of each against each other.")
@click.option("--nonce", metavar="HEX", help="With --check: let each GPU sign its measurements over it (attestation).")
@json_option
@click.pass_context
def devices(ctx: click.Context, *, ray: str | None, check: bool, nonce: str | None, as_json: bool) -> None:
    """Show the devices that can be measured, and what their sensors tell.

    With --check exits 1 if two sides disagree on anything. Attestation evidence is collected, never verified here.
    """
    if check or nonce:
        if ray or not check:
            msg = "--check looks at this machine only, without --ray; --nonce needs --check"
            raise MisuseError(msg)
        _check(ctx, nonce, as_json=as_json)
        return
    from harness.cluster import session  # brings NumPy, which no other command here needs

    with hushed(ray):
        found = session.devices(ray)
    if as_json:
        show_json(found)
        return
    for device in found:
        show(text.device_card(device), "")


def _check(ctx: click.Context, nonce: str | None, *, as_json: bool) -> None:
    from harness.device.identity import examine

    found = examine(nonce)
    if as_json:
        show_json(found)
    else:
        for one in found:
            show(text.checks_card(one.device, one.checks), "")
    if any(check.verdict == "disagree" for one in found for check in one.checks):
        ctx.exit(HarnessError.exit_code)


@click.command("list")
@click.option("--commands", is_flag=True, help="List the commands of this program instead.")
@click.option(
    "--full", is_flag=True, help="With --commands and --markdown: the page of all commands and their options."
)
@click.option("--markdown", is_flag=True, help="As a Markdown table.")
@json_option
@click.pass_context
def list_benchmarks(ctx: click.Context, *, commands: bool, full: bool, markdown: bool, as_json: bool) -> None:
    """List the benchmarks, ours and those of installed plug-ins."""
    if commands or full:
        if full and not (commands and markdown):
            msg = "--full is a page of Markdown about the commands: give --commands --markdown --full"
            raise MisuseError(msg)
        _commands(ctx, full=full, markdown=markdown, as_json=as_json)
        return
    found = registry.find()
    if as_json:
        show_json([_entry(b) for b in found])
    elif markdown:
        click.echo(text.benchmark_markdown(found))
    else:
        show(text.benchmark_table(found))


def _commands(ctx: click.Context, *, full: bool, markdown: bool, as_json: bool) -> None:
    root = ctx.find_root().command
    assert isinstance(root, click.Group)  # noqa: S101 - the program itself
    if as_json:
        show_json([{"call": call, "does": does} for call, does in reference.command_rows(root)])
    elif markdown:
        click.echo(reference.reference(root) if full else reference.command_markdown(root))
    else:
        show(text.command_table(tuple(reference.command_rows(root))))


def _entry(bench: registry.Benchmark) -> dict[str, object]:
    axes = {k: v.told() if isinstance(v, registry.Sized) else [*v] for k, v in bench.axes.items()}
    return {
        "name": bench.name,
        "version": bench.version,
        "summary": bench.summary,
        "metric": bench.metric,
        "axes": codec.plain(axes),
        "quick": {k: [*v] for k, v in bench.quick.items()},
        "module": bench.module,
    }


@click.command()
def schema() -> None:
    """Print the JSON Schema (draft 2020-12) of every record."""
    click.echo(json.dumps(codec.schema(), indent=1, ensure_ascii=False))
