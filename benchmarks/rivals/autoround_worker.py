"""Quantise a packaged model with AutoRound and write the codes it finds.

    python benchmarks/rivals/autoround_worker.py MODEL.gguf SAMPLES.json GROUP OUT.safetensors

Run by gptq_peers.py, as gptqmodel_worker.py is, with the same files.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

from rival_codes import BITS, report, save_codes, save_plain

ITERATIONS = 50
"""200 are its default, and take four times as long."""


def main() -> None:
    model, samples, group, out = sys.argv[1:]
    torch.set_num_threads(2)
    tokens = json.loads(Path(samples).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        plain, done = Path(folder, "plain"), Path(folder, "done")
        save_plain(Path(model), plain)
        loaded = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
        start = time.perf_counter()
        quantizer = AutoRound(
            loaded,
            AutoTokenizer.from_pretrained(plain),
            bits=BITS,
            group_size=int(group),
            sym=True,
            iters=ITERATIONS,
            nsamples=len(tokens),
            seqlen=len(tokens[0]),
            dataset=[torch.tensor([part]) for part in tokens],
            device_map="cpu",
        )
        quantizer.quantize()
        seconds = time.perf_counter() - start
        quantizer.save_quantized(str(done), format="auto_gptq")
        save_codes(done, int(group), Path(out))
    report(seconds)


if __name__ == "__main__":
    main()
