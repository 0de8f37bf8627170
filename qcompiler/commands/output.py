"""How commands print: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO


def say(text: str) -> None:
    """Print a line that is not a result."""
    print(text, file=sys.stderr, flush=True)


def print_json(values: Mapping[str, object]) -> None:
    """Print one JSON object; a number that JSON cannot write, such as infinity, is null."""
    print(json.dumps(_plain(values), indent=2, ensure_ascii=False))


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Sequence[str] = (),
    file: TextIO | None = None,
) -> None:
    """Print rows under headings, one line each where `file`, stdout if not given, is no terminal.

    The columns named in `numbers` are set flush right.
    """
    out = sys.stdout if file is None else file
    lines = [tuple(columns), *map(tuple, rows)]
    if not out.isatty():
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = (
                cell.rjust(width) if column in numbers else cell.ljust(width)
                for column, cell, width in zip(columns, line, widths, strict=True)
            )
            print("  ".join(cells).rstrip(), file=out)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for line in lines[1:]:
        # Text, not str: a name such as "[bold]" is no markup here.
        table.add_row(*map(Text, line))
    Console(file=out).print(table)
