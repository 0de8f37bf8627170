"""Many texts at once give the logits that each gives by itself."""

from __future__ import annotations

import warnings

import pytest
import torch

from qcompiler.core.batch_interpreter import BatchedLanguageModel
from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.frontend import capture
from tests.families import tiny_model

# Windows, a softcap, learned positions, experts, parallel branches.
FAMILIES = ("falcon", "gemma2", "gpt2", "llama", "mistral", "opt", "qwen3_moe")


@pytest.mark.parametrize("family", FAMILIES)
def test_each_text_is_as_if_it_were_alone(family: str) -> None:
    program = capture(tiny_model(family))
    texts = torch.randint(0, 256, (3, 14), generator=torch.Generator().manual_seed(4))
    model = BatchedLanguageModel(program, texts=3, context=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch tells of operators that it runs one by one
        found = torch.stack([model.step(column) for column in texts.T], dim=1)
    assert model.length == 14
    alone = TorchLanguageModel(program)
    expected = torch.stack([alone.logits(text.tolist()) for text in texts])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_bytes_per_text_are_those_of_the_caches() -> None:
    program = capture(tiny_model("llama"))
    model = BatchedLanguageModel(program, texts=1, context=20)
    taken = sum(cache.nbytes for cache in model._caches)
    assert BatchedLanguageModel.bytes_per_text(program, 20) == taken
