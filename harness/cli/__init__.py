"""The command line: the only place that reads argv, prints, and exits. Each command is a thin call of a public function.

Environment: HARNESS_KEY names the key file to sign with, as `--key` does.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys

import click

from harness.cli.agents import mcp
from harness.cli.compare import compare
from harness.cli.doctor import doctor
from harness.cli.fleet import fleet
from harness.cli.inspect import devices, list_benchmarks, schema
from harness.cli.judge import keygen, verify
from harness.cli.market import market
from harness.cli.node import node
from harness.cli.offer import offer
from harness.cli.output import on_one_line
from harness.cli.price import quote, score
from harness.cli.proof import audit, challenge, check, prove
from harness.cli.report import report
from harness.cli.run import run
from harness.cli.serve import journal, serve
from harness.cli.serve_bench import serve_bench
from harness.cli.shape import Sections, show_version, with_examples
from harness.cli.slot import prover, verifier
from harness.cli.watch import watch
from harness.errors import FailureError, HarnessError, MisuseError
from harness.market.dialects.akash_script import akash_price

__all__ = ["cli", "main"]

_INTERRUPTED = 130


@click.group(
    cls=Sections,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_version,
    help="Show the version, and what else a report of a defect should say.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Measure GPUs, prove what was measured, score it and price it.

    \b
    harness doctor           what can be measured here, and what to mend first
    harness run              measure this machine and price it
    harness verify FILE      check somebody's report

    Results go to stdout, progress to stderr; --json puts one JSON document on the last line of stdout.
    Exit codes: 0 good, 1 failure, 2 misuse, 3 wrong answer, 4 bad or forged file.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(MisuseError.exit_code)


for command in (
    devices,
    list_benchmarks,
    run,
    score,
    quote,
    offer,
    akash_price,
    compare,
    report,
    verify,
    keygen,
    schema,
    node,
    fleet,
    market,
    serve_bench,
    serve,
    journal,
    mcp,
    verifier,
    prover,
    challenge,
    prove,
    check,
    audit,
    doctor,
    watch,
):
    cli.add_command(command)
with_examples(cli)


def _unprinted(err: OSError) -> None:
    """Say what keeps us from printing, if anybody still listens; nothing is left to be flushed at the end."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with contextlib.suppress(OSError):
        if err.errno != errno.EPIPE:
            click.echo(on_one_line(f"harness: cannot write: {err.strerror or err}"), err=True)


def main() -> None:
    """Run the command line; every error on purpose is one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be Unicode, nor the terminal UTF-8
    try:
        code = cli.main(standalone_mode=False)
    except HarnessError as err:
        click.echo(on_one_line(f"harness: {err}"), err=True)
        code = err.exit_code
    except click.ClickException as err:
        context = getattr(err, "ctx", None)
        path = context.command_path if context else "harness"
        click.echo(on_one_line(f"harness: {err.format_message()} See `{path} --help`."), err=True)
        code = err.exit_code
    except OSError as err:  # of what is printed: what is read and written by name has errors of its own
        _unprinted(err)
        code = FailureError.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("harness: interrupted", err=True)
        code = _INTERRUPTED
    sys.exit(code if isinstance(code, int) else 0)
