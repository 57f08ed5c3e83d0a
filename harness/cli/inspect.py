"""`harness devices`, `harness list`, `harness schema`: what there is."""

from __future__ import annotations

import json

import click

from harness import codec, registry
from harness.cli.output import hushed, json_option, show, show_json
from harness.render import text

__all__ = ["devices", "list_benchmarks", "schema"]


@click.command()
@click.option("--ray", metavar="ADDRESS", help="Look at a Ray cluster instead: HOST:PORT of its head, or local.")
@json_option
def devices(*, ray: str | None, as_json: bool) -> None:
    """Show the devices that can be measured, and what their sensors tell."""
    from harness.cluster import session  # brings NumPy, which no other command here needs

    with hushed(ray):
        found = session.devices(ray)
    if as_json:
        show_json(found)
        return
    for device in found:
        show(text.device_card(device), "")


@click.command("list")
@click.option("--markdown", is_flag=True, help="As a Markdown table.")
@json_option
def list_benchmarks(*, markdown: bool, as_json: bool) -> None:
    """List the benchmarks, ours and those of installed plug-ins."""
    found = registry.find()
    if as_json:
        show_json([_entry(b) for b in found])
    elif markdown:
        click.echo(text.benchmark_markdown(found))
    else:
        show(text.benchmark_table(found))


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
