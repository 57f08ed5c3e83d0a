"""The door for `python -m harness` and for the console script."""

from harness.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
