"""The door for `python -m harness` and for the console script."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line. An Akash provider waits for its price, so that command is met at the door, before the others are loaded."""
    if sys.argv[1:2] == ["akash-price"]:
        from harness.market.dialects import akash_script

        sys.exit(akash_script.main(sys.argv[2:]))
    from harness import cli

    cli.main()


if __name__ == "__main__":
    main()
