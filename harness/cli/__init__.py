"""The command line: the only place that reads argv, prints, and exits. Each command is a thin call of a public function.

Environment: HARNESS_KEY names the key file to sign with, as `--key` does.
"""

from __future__ import annotations

import sys

import click

from harness.cli.inspect import devices, list_benchmarks, schema
from harness.cli.judge import keygen, verify
from harness.cli.price import quote, score
from harness.cli.run import run
from harness.errors import HarnessError

__all__ = ["cli", "main"]

_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="gpu-assay", prog_name="harness")
def cli() -> None:
    """Measure GPUs, prove what was measured, score it and price it.

    \b
    harness run              measure this machine and price it
    harness verify FILE      check somebody's report
    Exit codes: 0 good, 1 failure, 2 misuse, 3 wrong answer, 4 bad or forged file.
    """


for command in (devices, list_benchmarks, run, score, quote, verify, keygen, schema):
    cli.add_command(command)


def main() -> None:
    """Run the command line; every error on purpose is one line and an exit code."""
    try:
        code = cli.main(standalone_mode=False)
    except HarnessError as err:
        click.echo(f"harness: {err}", err=True)
        code = err.exit_code
    except click.ClickException as err:
        err.show()
        code = err.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("harness: interrupted", err=True)
        code = _INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has had enough
        code = 0
    sys.exit(code if isinstance(code, int) else 0)
