"""The entrance: what may be passed, and one sentence for everything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from qcompiler.core.errors import CaptureError
from qcompiler.frontend import capture
from qcompiler.frontend.capture import open_model

Build = Callable[[str], PreTrainedModel]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere/model", "there is no file or folder nowhere/model; models are not downloaded"),
        ("model.gguf", r"there is no file or folder model\.gguf; models are not downloaded"),
        ("smolm2-135m", "no file or folder 'smolm2-135m', .* did you mean 'smollm2-135m'"),
    ],
)
def test_what_is_not_there_is_named(model: str, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(model)


def test_a_file_of_weights_alone_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(CaptureError, match="holds weights alone; pass its folder"):
        capture(file)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CaptureError, match=r"notes\.txt cannot be read as GGUF"):
        capture(tmp_path / "notes.txt")


def test_two_gguf_files_in_a_folder_are_one_too_many(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CaptureError, match=r"holds 2 GGUF files \(a\.gguf, b\.gguf, …\); pass one"):
        capture(tmp_path)


def test_one_gguf_file_in_a_folder_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(CaptureError, match=r"a\.gguf is damaged"):
        open_model(tmp_path)


def test_safetensors_go_before_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CaptureError, match=r"config\.json does not say its model_type"):
        open_model(tmp_path)


def test_an_encoder_with_a_head_is_refused() -> None:
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(CaptureError, match="BertForMaskedLM has a head of its own"):
        capture(transformers.BertForMaskedLM(config))


def test_a_module_needs_example_inputs() -> None:
    with pytest.raises(CaptureError, match="Linear needs example inputs to be captured"):
        capture(nn.Linear(2, 2))


def test_a_path_takes_no_example_inputs() -> None:
    with pytest.raises(CaptureError, match="go with a module, not with a file"):
        capture("x", example_inputs=torch.ones(1))


def test_an_exported_program_takes_no_example_inputs() -> None:
    exported = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    with pytest.raises(CaptureError, match="already has its inputs"):
        capture(exported, example_inputs=torch.ones(1))


def test_something_else_is_no_model() -> None:
    with pytest.raises(CaptureError, match="a dict is no model; pass a path"):
        capture({})  # type: ignore[arg-type]


def test_text_is_no_example_input() -> None:
    with pytest.raises(CaptureError, match="example inputs are tensors"):
        capture(nn.Linear(2, 2), example_inputs="hello")


def test_a_model_in_memory_says_what_ends_its_texts(tiny_model: Build) -> None:
    model = tiny_model("llama")
    model.generation_config.eos_token_id = [5, 2]
    info = capture(model).info
    assert info.end_tokens == (5, 2)
    assert (info.name, info.source) == ("LlamaForCausalLM", "memory")


def test_a_language_model_with_example_inputs_is_a_plain_module(tiny_model: Build) -> None:
    model = tiny_model("llama")
    program = capture(
        model, example_inputs={"input_ids": torch.arange(5)[None], "use_cache": False}
    )
    assert program.info.kind == "module"
    assert [str(n.target) for n in program.placeholders()] == ["input_ids"]


def test_a_capture_is_the_same_each_time(tiny_model: Build) -> None:
    from qcompiler.core.printer import print_program

    first, second = (capture(tiny_model("gemma3")) for _ in range(2))
    assert print_program(first) == print_program(second)
    assert list(first.weights) == list(second.weights)
