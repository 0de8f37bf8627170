"""Quantise a packaged model with GPTQModel and write the codes it finds.

    python benchmarks/rivals/gptqmodel_worker.py MODEL.gguf SAMPLES.json GROUP OUT.safetensors

Run by gptq_peers.py, if need be with the interpreter of another environment. SAMPLES.json holds
lists of tokens. Written are `<operator>|codes` [n, k] int8 and `<operator>|scale` [n, g] float16 of
every product, 4 bits, symmetric; printed is one JSON object with seconds and peak memory.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

from rival_codes import BITS, report, save_codes, save_plain


def main() -> None:
    model, samples, group, out = sys.argv[1:]
    torch.set_num_threads(2)
    tokens = json.loads(Path(samples).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        plain, done = Path(folder, "plain"), Path(folder, "done")
        save_plain(Path(model), plain)
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
        save_codes(done, int(group), Path(out))
    report(seconds)


if __name__ == "__main__":
    main()
