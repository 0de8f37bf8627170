"""What the workers that run rival quantisers share: a model as a plain folder, codes unpacked."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

BITS = 4


def save_plain(model: Path, folder: Path) -> None:
    """Write a GGUF model as a Hugging Face folder of float32 weights, with its tokenizer."""
    loaded = AutoModelForCausalLM.from_pretrained(
        model.parent, gguf_file=model.name, dtype=torch.float32
    )
    # What was read from GGUF refuses to be saved.
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    fresh = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name).save_pretrained(folder)


def save_codes(done: Path, group: int, out: Path) -> None:
    """Write the codes and scales of a folder in GPTQ's layout, by operator."""
    found: dict[str, torch.Tensor] = {}
    for name, value in _tensors(done):
        operator, _, kind = name.rpartition(".")
        if kind == "qweight":
            found[f"{operator}|codes"] = unpack(value)
        elif kind == "scales":
            found[f"{operator}|scale"] = value.T.to(torch.float16).contiguous()
        elif kind == "g_idx":
            natural = torch.arange(len(value)) // group
            assert torch.equal(value.long(), natural), "columns are not in order"
    save_file(found, out)


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for part in sorted(folder.rglob("*.safetensors")):
        with safe_open(part, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield name, tensors.get_tensor(name)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """Return codes [n, k] from 32-bit words [k / 8, n] that hold 8 inputs each, lowest first."""
    shifts = torch.arange(0, 32, BITS).reshape(1, -1, 1)
    codes = (packed.unsqueeze(1) >> shifts) & (2**BITS - 1)
    return (codes.reshape(-1, packed.shape[1]).T - 2 ** (BITS - 1)).to(torch.int8).contiguous()


def report(seconds: float) -> None:
    """Print what the run took, as one JSON object."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak_memory_bytes": peak}))
