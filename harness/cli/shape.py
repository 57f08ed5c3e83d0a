"""How the help is laid out: commands in groups, examples below, and a version that serves a report of a defect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import click
from click.shell_completion import CompletionItem

__all__ = [
    "EXAMPLES",
    "SECTIONS",
    "Sections",
    "benchmark_names",
    "first_sentence",
    "sections",
    "show_version",
    "with_examples",
]

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Measure": ("run", "doctor", "devices", "watch", "list", "serve-bench"),
    "Read and price": ("report", "score", "quote", "compare", "verify", "keygen", "schema", "market"),
    "Fleets": ("node", "fleet"),
    "Sell": ("offer", "serve", "journal", "akash-price", "mcp"),
    "Proofs": ("challenge", "prove", "check", "audit", "verifier", "prover"),
}
_OTHER = "More"

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "run": (
        "harness run                                  a minute for each device of this machine",
        "harness run gemm stream --device cuda:0      two benchmarks on one GPU",
        "harness run --preset standard --key key.pem  what a price to sell by is made of, signed",
        "harness run --ray 10.0.0.1:6379              a fleet",
        "harness run --resume FILE                    finish what was cut short",
    ),
    "doctor": (
        "harness doctor                               what can be measured here, and what to mend",
        "harness doctor --json                        the same for a program",
    ),
    "watch": (
        "harness watch --device cuda:0                until Ctrl-C",
        "harness watch --every 0.5 --count 20 --json  ten seconds, a line a look",
    ),
    "devices": ("harness devices", "harness devices --check"),
    "list": ("harness list", "harness list --commands"),
    "verify": ("harness verify results/*.json", "harness verify quote.json report.json"),
    "quote": (
        "harness quote report.json --profile decode",
        "harness quote report.json --explain",
        "harness quote fleet.parquet --ray 10.0.0.1:6379 --json",
    ),
    "score": ("harness score report.json --profile training",),
    "compare": ("harness compare before.json after.json",),
    "keygen": ("harness keygen --out key.pem",),
    "node start": (
        "harness node start --head --bind 10.0.0.1",
        "harness node start --join 10.0.0.1:6379 --token-file TOKEN",
    ),
    "fleet report": ("harness fleet report results/*.json",),
    "report": (
        "harness report results/*.json --html report.html",
        "harness report report.json --markdown        for a pull request",
    ),
    "audit": ("harness audit report.json",),
    "offer make": ("harness offer make quote.json --terms terms.toml --key seller.pem --out offer.json",),
    "offer show": ("harness offer show offer.json --view x402",),
    "serve": ("harness serve results --key seller.pem --facilitator https://facilitator.example",),
    "mcp": ("harness mcp http://127.0.0.1:8402",),
    "serve-bench": ("harness serve-bench http://localhost:8000 --users 1,4,16",),
}


class Sections(click.Group):
    """A group that lists its commands by what they are for."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a block for each section that has commands."""
        for title, names in sections(self.list_commands(ctx)).items():
            shown = [(name, self.get_command(ctx, name)) for name in names]
            rows = [(name, first_sentence(command)) for name, command in shown if command]
            with formatter.section(title):
                formatter.write_dl(rows)


def sections(names: list[str]) -> Mapping[str, list[str]]:
    """Return the commands by section; one that no section names is under the last."""
    known = {name for listed in SECTIONS.values() for name in listed}
    found = {title: [name for name in listed if name in names] for title, listed in SECTIONS.items()}
    found[_OTHER] = [name for name in names if name not in known]
    return {title: listed for title, listed in found.items() if listed}


def first_sentence(command: click.Command) -> str:
    """Return what a command does, in one sentence without its full stop."""
    paragraph = " ".join((command.help or "").split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".")


def with_examples(root: click.Group) -> None:
    """Put each command's examples below its help."""
    for path, examples in EXAMPLES.items():
        command = _named(root, path)
        if command is not None and command.epilog is None:
            command.epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples)


def _named(root: click.Group, path: str) -> click.Command | None:
    found: click.Command | None = root
    for name in path.split():
        found = found.commands.get(name) if isinstance(found, click.Group) else None
    return found


def show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    """Print the version and end."""
    if value and not ctx.resilient_parsing:
        from harness.cli.version import told

        click.echo(told())
        ctx.exit()


def benchmark_names(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a benchmark."""
    return list(_names(incomplete))


def _names(incomplete: str) -> Iterator[CompletionItem]:
    from harness import registry

    for bench in registry.find():
        if bench.name.startswith(incomplete):
            yield CompletionItem(bench.name, help=bench.summary)
