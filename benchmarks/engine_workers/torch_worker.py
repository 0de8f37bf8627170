"""Time a model folder in torch: as transformers runs it, compiled, and compressed by torchao.

See clock.py. Nothing is prepared: torch reads the folder as it is.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, StaticCache

from clock import Engine, StepEngine, main


def read(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


class Eager(StepEngine):
    """Operator by operator, with a cache that grows."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def prefill(self, prompt: list[int]) -> int:
        self.cache = None
        return self.read(prompt)

    def decode(self, token: int) -> int:
        return self.read([token])

    @torch.inference_mode()
    def read(self, tokens: list[int]) -> int:
        out = self.model(
            torch.tensor([tokens]), past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        self.cache = out.past_key_values
        return int(out.logits[0, -1].argmax())


class Compiled(StepEngine):
    """Single tokens compiled as a whole, with a cache of a fixed size; prompts run as they are.

    That is what `generate` of transformers does with a static cache. Were prompts of any length
    compiled as well, a process would begin with minutes of it; and what they wait for are large
    products, which are the same functions either way.
    """

    def __init__(self, model: PreTrainedModel, room: int) -> None:
        self.model = model
        self.cache = StaticCache(config=model.config, max_cache_len=room)
        self.read_token = torch.compile(self.read, fullgraph=True, dynamic=False)

    def read(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Read ids [1, s] at positions [s]; return the most likely next token."""
        out = self.model(
            ids,
            position_ids=positions[None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[0, -1].argmax()

    @torch.no_grad()
    def prefill(self, prompt: list[int]) -> int:
        self.cache.reset()
        self.length = len(prompt)
        return int(self.read(torch.tensor([prompt]), torch.arange(self.length)))

    @torch.no_grad()
    def decode(self, token: int) -> int:
        position = torch.tensor([self.length])
        self.length += 1
        return int(self.read_token(torch.tensor([[token]]), position))


def load(variant: str, path: Path, threads: int, room: int) -> Engine:
    torch.set_num_threads(threads)
    if variant == "float32":
        return Eager(read(path, torch.float32))
    model = read(path, torch.bfloat16)
    if variant == "bfloat16":
        return Eager(model)
    if variant != "compiled":
        compress(model, variant)
    return Compiled(model, room)


def compress(model: PreTrainedModel, variant: str) -> None:
    """Replace the weights of all products but the head's by torchao's, in place."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    # The only 4-bit weights of torchao with a kernel for processors of this kind.
    four = PrototypeInt4WeightOnlyConfig(group_size=64)
    quantize_(model, {"int4": four, "int8": Int8WeightOnlyConfig()}[variant])


def prepare(variant: str, source: str, target: Path) -> None:
    raise SystemExit("torch reads the model's folder as it is; there is nothing to prepare")


if __name__ == "__main__":
    main(prepare, load)
