"""Convert a model folder with Optimum Intel and NNCF, or time it in OpenVINO GenAI. See clock.py.

Run with the Python that has them: their versions of other packages are not those of the compiler.
"""

from __future__ import annotations

from pathlib import Path

from clock import main

COMPRESSION = {
    "int4": {"bits": 4, "sym": True, "group_size": 64, "ratio": 1.0},
    "int8": {"bits": 8, "sym": True},
}


class Pipeline:
    """A model in GenAI's pipeline, whose loop over tokens is its own.

    Attention is that of a single sequence (SDPA): the other kind, pages for many sequences, decodes
    one more slowly, and does not read a prompt again that it knows. All else is as by default:
    arithmetic in bfloat16 where the processor has it, a cache of bytes, activations quantised in
    groups of 32; float32 and float16 are slower here.
    """

    def __init__(self, variant: str, path: Path, threads: int, room: int) -> None:
        import openvino_genai

        self.pipeline = openvino_genai.LLMPipeline(
            str(path),
            "CPU",
            ATTENTION_BACKEND="SDPA",
            PERFORMANCE_HINT="LATENCY",
            INFERENCE_NUM_THREADS=threads,
            # Machine code is kept for the next process, as its guide to faster loading says.
            CACHE_DIR=str(path / "cache"),
        )

    def run(self, prompt: list[int], count: int) -> tuple[float, float]:
        import numpy as np
        from openvino import Tensor
        from openvino_genai import GenerationConfig

        settings = GenerationConfig(max_new_tokens=count + 1, ignore_eos=True, do_sample=False)
        done = self.pipeline.generate(Tensor(np.array([prompt], np.int64)), settings)
        found = len(done.tokens[0])
        if found != count + 1:
            raise SystemExit(f"OpenVINO GenAI gave {found} tokens instead of {count + 1}")
        metrics = done.perf_metrics
        decode = metrics.get_tpot().mean * count if count else 0.0
        return metrics.get_ttft().mean / 1e3, decode / 1e3


def prepare(variant: str, source: str, target: Path) -> None:
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    model = OVModelForCausalLM.from_pretrained(
        source,
        export=True,
        compile=False,
        quantization_config=OVWeightQuantizationConfig(**COMPRESSION[variant]),
    )
    model.save_pretrained(target)


if __name__ == "__main__":
    main(prepare, Pipeline)
