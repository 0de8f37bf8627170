"""`qcompiler generate-text`: text that a model writes, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import qcompiler
from qcompiler.commands.output import print_json, say
from qcompiler.commands.progress import watch
from qcompiler.core.errors import UsageError
from qcompiler.packaged import check_found
from qcompiler.report.figures import duration
from qcompiler.whole_file import check_text_file

if TYPE_CHECKING:
    from qcompiler.text_generation import GeneratedText


def generate_text(
    model: str,
    *,
    output: Path,
    samples: int,
    sequence_length: int | None,
    seed: int,
    temperature: float,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the text to the file `output`, and say where it is and how fast it was written."""
    # What is wrong with the request should show before seconds are spent on loading torch.
    check_text_file(output)
    check_found(model)
    if not 0 < temperature < float("inf"):
        raise UsageError(f"--temperature {temperature:g}: give a number above 0")
    with watch(quiet=quiet) as progress:
        found = qcompiler.generate_text(
            model,
            samples=samples,
            sequence_length=sequence_length,
            seed=seed,
            temperature=temperature,
            progress=progress,
        )
    found.save(output)
    if not quiet:
        say(summary(found))
    if as_json:
        print_json(as_object(found, output))
    else:
        print(output)


def summary(found: GeneratedText) -> str:
    """Say in a line how many tokens there are, and how fast they were written."""
    count, length = found.tokens.shape
    what = f"{count} × {length} = {count * length} tokens"
    if found.seconds is None:
        return f"{what} from the cache"
    return f"{what} in {duration(found.seconds)}, {found.tokens_per_s:.0f} tokens/s"


def as_object(found: GeneratedText, output: Path) -> dict[str, object]:
    """Return what `--json` prints."""
    count, length = found.tokens.shape
    return {
        "file": str(output),
        "samples": count,
        "sequence_length": length,
        "tokens": count * length,
        "cached": found.seconds is None,
        "seconds": found.seconds,
        "tokens_per_s": found.tokens_per_s,
    }
