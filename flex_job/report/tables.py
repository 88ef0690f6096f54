"""Parameters and versions as rows of text."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["flattened"]


def flattened(mapping: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """(name, value) rows; a nested mapping's names are joined with a dot. Empty text is shown as a dash."""
    rows = []
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            rows += flattened(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", f"{value:g}" if isinstance(value, float) else str(value) or "–"))
    return rows
