"""`qcompiler passes`: what a pipeline can be made of."""

from __future__ import annotations

import dataclasses
import inspect

from passes import PASSES
from qcompiler.commands.output import print_table
from qcompiler.core.options import pass_table
from qcompiler.core.pass_base import Pass
from qcompiler.core.stage import Stage


def list_passes() -> None:
    """Print every pass, our own and those of other distributions, with stages and options."""
    table = pass_table(PASSES)
    rows = [(name, _stages(kind), _meaning(kind), _options(kind)) for name, kind in table.items()]
    print_table(("pass", "stages", "meaning", "options"), rows)


def _stages(kind: type[Pass]) -> str:
    accepts = "|".join(str(stage) for stage in Stage if stage in kind.accepts)
    return accepts if kind.yields is None else f"{accepts} → {kind.yields}"


def _meaning(kind: type[Pass]) -> str:
    """Return the first sentence of a pass's docstring."""
    return (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")


def _options(kind: type[Pass]) -> str:
    """Write the fields of a pass as they are declared: name, type, default."""
    fields = []
    for field in dataclasses.fields(kind):
        text = f"{field.name}: {field.type}"
        if field.default is not dataclasses.MISSING:
            text += f" = {field.default!r}"
        elif field.default_factory is not dataclasses.MISSING:
            text += f" = {field.default_factory()!r}"
        fields.append(text)
    return ", ".join(fields)
