"""What a URL has to be that services and their clients put paths behind."""

from __future__ import annotations

from urllib.parse import urlsplit

__all__ = ["is_root"]


def is_root(url: str) -> bool:
    """Tell whether a URL is one of HTTP with a host, and without a query or a fragment, so that a path can be put behind it."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # a wrong one raises
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and not {"?", "#"} & set(url)
