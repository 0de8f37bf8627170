"""The pipelines that come with the compiler, and the search for one by name or file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from qcompiler.core.config import PipelineConfig, read_pipeline
from qcompiler.core.errors import ConfigError, suggest

# The folder is found without importing `passes`, which would load torch.
FOLDER = Path(__file__).parent.parent / "passes" / "presets"


def preset_names() -> list[str]:
    """Return the names of the presets, sorted.

    >>> preset_names()
    ['balanced', 'float', 'qat-w4a8kv4', 'w4a8', 'w4a8-gptq', 'w4a8-signround', 'w8a8']
    """
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def find_pipeline(name: str, *, passes: Collection[str] | None = None) -> PipelineConfig:
    """Read the preset of that name, or the pipeline file at that path.

    `passes` are the names a step may have, where they are known. Raises ConfigError.
    """
    if name in preset_names():
        return read_pipeline(FOLDER / f"{name}.toml", passes=passes)
    if name.endswith(".toml") or "/" in name:
        return read_pipeline(Path(name), passes=passes)
    raise ConfigError(f"{suggest('pipeline', name, preset_names())}, or the path of a .toml file")
