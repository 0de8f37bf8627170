"""Capturing a large model takes little memory, since none of its weights are there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

GIGABYTE = 1000**3

SCRIPT = """
import json, sys
from qcompiler.frontend.causal_lm import capture_causal_lm
from qcompiler.frontend.hf_folder import skeleton
from transformers import AutoConfig

model = skeleton(AutoConfig.from_pretrained(sys.argv[1], local_files_only=True))
lifted, kv = capture_causal_lm(model)
weights = [n.meta["val"] for n in lifted.graph.nodes if n.op == "get_attr"]
# Not getrusage: its figure is that of the process that started this one, if that was larger.
status = open("/proc/self/status").read().splitlines()
peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
print(json.dumps({
    "layers": len(kv),
    "parameters": sum(w.numel() for w in weights),
    "peak": peak,
}))
"""


@pytest.mark.slow
def test_a_model_of_seven_billion_weights_is_captured_in_little_memory(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=4096,
    )
    config.save_pretrained(tmp_path)
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["layers"] == 32
    assert found["parameters"] > 6.7e9
    assert found["peak"] < 1.5 * GIGABYTE
