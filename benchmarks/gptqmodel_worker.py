"""Quantise a packaged model with GPTQModel and write the codes it finds.

    python benchmarks/gptqmodel_worker.py MODEL.gguf SAMPLES.json GROUP OUT.safetensors

Run by gptq_peers.py, if need be with the interpreter of another environment. SAMPLES.json holds
lists of tokens. Written are `<operator>|codes` [n, k] int8 and `<operator>|scale` [n, g] float16 of
every product, 4 bits, symmetric; printed is one JSON object with seconds and peak memory.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

BITS = 4


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """Return codes [n, k] from 32-bit words [k / 8, n] that hold 8 inputs each, lowest first."""
    shifts = torch.arange(0, 32, BITS).reshape(1, -1, 1)
    codes = (packed.unsqueeze(1) >> shifts) & (2**BITS - 1)
    return (codes.reshape(-1, packed.shape[1]).T - 2 ** (BITS - 1)).to(torch.int8).contiguous()


def main() -> None:
    model, samples, group, out = sys.argv[1:]
    torch.set_num_threads(2)
    file = Path(model)
    tokens = json.loads(Path(samples).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        plain, done = Path(folder, "plain"), Path(folder, "done")
        loaded = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        # What was read from GGUF refuses to be saved.
        if hasattr(loaded.config, "quantization_config"):
            del loaded.config.quantization_config
        fresh = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
        fresh.load_state_dict(loaded.state_dict())
        fresh.save_pretrained(plain)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(plain)
        del loaded, fresh
        config = QuantizeConfig(
            bits=BITS, group_size=int(group), sym=True, offload_to_disk=False, device="cpu"
        )
        quantizer = GPTQModel.load(str(plain), config, dtype=torch.float32)
        start = time.perf_counter()
        quantizer.quantize(
            [{"input_ids": part, "attention_mask": [1] * len(part)} for part in tokens],
            batch_size=1,
            backend=BACKEND.AUTO,
        )
        seconds = time.perf_counter() - start
        quantizer.save(str(done))
        found: dict[str, torch.Tensor] = {}
        for part in sorted(done.glob("*.safetensors")):
            with safe_open(part, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    operator, _, kind = name.rpartition(".")
                    if kind == "qweight":
                        found[f"{operator}|codes"] = unpack(tensors.get_tensor(name))
                    elif kind == "scales":
                        scale = tensors.get_tensor(name).T.contiguous()
                        found[f"{operator}|scale"] = scale.to(torch.float16)
                    elif kind == "g_idx":
                        order = tensors.get_tensor(name)
                        natural = torch.arange(len(order)) // int(group)
                        assert torch.equal(order.long(), natural), "columns are not in order"
        save_file(found, out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak_memory_bytes": peak}))


if __name__ == "__main__":
    main()
