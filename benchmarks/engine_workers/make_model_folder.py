"""Write a Hugging Face folder of bfloat16 weights: of a GGUF file, or of a shape with random ones.

python make_model_folder.py gguf MODEL.gguf FOLDER
python make_model_folder.py shape SETTINGS.json FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel


def from_gguf(path: Path) -> PreTrainedModel:
    """Read the weights of a GGUF file into a model that can be saved."""
    loaded = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.bfloat16
    )
    # What was read from GGUF refuses to be saved.
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    fresh = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.bfloat16)
    fresh.load_state_dict(loaded.state_dict())
    return fresh


def from_shape(path: Path) -> PreTrainedModel:
    """Make a Llama of random weights, as large as those a new model begins its training with."""
    torch.manual_seed(0)
    config = LlamaConfig(**json.loads(path.read_text(encoding="utf-8")))
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def main() -> None:
    kind, source, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    model = from_gguf(source) if kind == "gguf" else from_shape(source)
    model.save_pretrained(folder)
    if kind == "gguf":
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    # Transformers before version 5, which a rival may have, look for the base only here.
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
