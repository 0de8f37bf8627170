"""Open a GGUF file as a Hugging Face model."""

from __future__ import annotations

from pathlib import Path

from qcompiler.core.errors import CaptureError
from qcompiler.frontend.checkpoint import Checkpoint
from qcompiler.frontend.families import check_config
from qcompiler.frontend.gguf_config import gguf_config
from qcompiler.frontend.gguf_file import GgufFile
from qcompiler.frontend.gguf_weights import GgufWeights, correct_frequencies
from qcompiler.frontend.hf_folder import skeleton
from qcompiler.frontend.text import text_of_gguf


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file without reading a weight.

    Raises:
        CaptureError: it is damaged, or its model is not supported.
    """
    file = GgufFile(path)
    parts = file.metadata.get("split.count", 1)
    if parts > 1:
        raise CaptureError(
            f"{path} is one of {parts} parts of a model; put them together first, with "
            "llama-gguf-split --merge"
        )
    config = gguf_config(file)
    check_config(config)
    model = skeleton(config)
    correct_frequencies(model, file)
    return Checkpoint(
        name=path.stem,
        place=str(path),
        model=model,
        weights=GgufWeights(file, config, model.state_dict(keep_vars=True)),
        source=file.describe(),
        text=text_of_gguf(file),
    )
