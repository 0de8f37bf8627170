"""The files that the engines read: of a packaged model, or of a shape with random weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from gguf import GGUFReader

from engine_list import WORKERS, Engine
from qcompiler.packaged import packaged_file

SHAPES: dict[str, dict[str, object]] = {
    # Llama 3.2 1B, but that embedding and head are two tensors: nothing of it stays in a cache.
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "tie_word_embeddings": False,
    },
}


class ModelFiles:
    """One model in each form that an engine wants; what is not there yet is made when asked for."""

    def __init__(
        self, model: str, shape: str | None, build: Path, say: Callable[[str], None]
    ) -> None:
        self.model, self.shape = model, shape
        self.name = model if shape is None else f"llama-{shape}"
        self.build, self.say = build, say

    @property
    def max_context(self) -> int:
        """The most tokens that a sequence may have."""
        if self.shape is not None:
            return int(str(SHAPES[self.shape]["max_position_embeddings"]))
        fields = GGUFReader(packaged_file(self.model)).fields
        family = fields["general.architecture"].contents()
        return int(fields[f"{family}.context_length"].contents())

    def folder(self) -> Path:
        """Return the model as a Hugging Face folder."""
        script = WORKERS / "make_model_folder.py"
        folder = self.build / f"{self.name}.hf"
        if self.shape is None:
            source, kind = packaged_file(self.model), "gguf"
        else:
            source, kind = self.build / f"{self.name}.json", "shape"
            self.build.mkdir(exist_ok=True)
            source.write_text(json.dumps(SHAPES[self.shape]), encoding="utf-8")
        return self.made(folder, [sys.executable, str(script), kind, str(source)])

    def gguf(self) -> Path:
        """Return the model as a GGUF file."""
        if self.shape is None:
            return packaged_file(self.model)
        out = self.build / f"{self.name}.gguf"
        if out.exists():
            return out
        script = WORKERS / "make_gguf.py"
        return self.made(out, [sys.executable, str(script), str(self.folder())])

    def source(self, engine: Engine) -> str:
        """Return what an engine prepares its own files from, or reads."""
        if engine.family.source == "gguf":
            return str(self.gguf())
        if engine.family.source == "folder" or self.shape is not None:
            return str(self.folder())
        return self.model

    def prepared(self, engine: Engine, python: str, *, anew: bool) -> Path:
        """Return what an engine loads. With `anew` it is made even if it is there."""
        if engine.family.ending is None:
            return Path(self.source(engine))
        target = self.build / f"{self.name}.{engine.variant}.{engine.family.ending}"
        if anew:
            _remove(target)
        if target.exists():
            when = datetime.fromtimestamp(target.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
            self.say(f"{target} is of {when}")
            return target
        command = [python, str(engine.worker), "prepare", engine.variant, self.source(engine)]
        return self.made(target, command)

    def made(self, target: Path, command: list[str]) -> Path:
        """Return `target`; unless it is there, a command writes it, whole or not at all."""
        if target.exists():
            return target
        self.build.mkdir(exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        _remove(part)
        self.say(f"making {target}")
        done = subprocess.run([*command, str(part)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{target} could not be made:\n{done.stderr}")
        part.rename(target)
        return target


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
