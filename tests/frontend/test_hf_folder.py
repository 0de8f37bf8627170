"""Hugging Face folders: what save_pretrained writes comes back; what is wrong is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from qcompiler.core.errors import CaptureError
from qcompiler.core.interpreter import ProgramInterpreter
from qcompiler.core.program import Program
from qcompiler.frontend import capture
from qcompiler.frontend.hf_folder import open_folder
from qcompiler.frontend.safetensors_source import SafetensorsSource

Build = Callable[[str], PreTrainedModel]
Difference = Callable[[Program, PreTrainedModel], float]

BERT = transformers.BertConfig(
    vocab_size=128,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=40,
)


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Build) -> Path:
    """A tiny Llama's folder."""
    tiny_model("llama").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["gpt2", "llama-tied"])
def test_a_saved_model_computes_what_it_did(
    tmp_path: Path, tiny_model: Build, difference: Difference, name: str
) -> None:
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    assert difference(capture(tmp_path), model) <= 1e-5


def test_shards_and_half_precision(
    tmp_path: Path, tiny_model: Build, difference: Difference
) -> None:
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    program = capture(str(tmp_path))
    assert program.info.source == "safetensors BF16"
    assert {program.weights.dtype(name) for name in program.weights} == {torch.float32}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert difference(program, model) <= 1e-5


def test_what_the_folder_says_is_kept(folder: Path) -> None:
    info = capture(folder).info
    assert info.kind == "causal-lm"
    assert (info.name, info.architecture) == (folder.name, "llama")
    assert (info.vocab_size, info.max_context) == (256, 128)
    assert [(kv.heads, kv.head_dim) for kv in info.kv] == [(2, 16), (2, 16)]
    assert info.tokenizer_json is None


def test_weights_come_back_under_the_modules_names(
    tmp_path: Path, tiny_model: Build, family: str
) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    if family == "qwen3_moe":
        stored = load_file(tmp_path / "model.safetensors")
        assert "model.layers.0.mlp.experts.3.gate_proj.weight" in stored, "experts one by one"
    weights = open_folder(tmp_path).weights
    for name, parameter in model.named_parameters():
        assert torch.equal(weights.read(name), parameter)
        assert weights.shape(name) == tuple(parameter.shape)
        assert weights.dtype(name) == parameter.dtype


def test_a_lost_expert_is_noticed(tmp_path: Path, tiny_model: Build) -> None:
    tiny_model("qwen3_moe").save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    del stored["model.layers.1.mlp.experts.3.gate_proj.weight"]
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(CaptureError, match=r"'model\.layers\.1\.mlp\.experts\.gate_up_proj'"):
        capture(tmp_path)


def test_names_of_an_older_time_are_understood(tmp_path: Path) -> None:
    model = transformers.BertModel(BERT).eval()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, old in older.items():
        stored = {f"bert.{k}".replace("bert.bert.", "bert."): v for k, v in stored.items()}
        stored = {k.replace(new, old): v for k, v in stored.items()}
    save_file(stored, tmp_path / "model.safetensors")
    weights = open_folder(tmp_path).weights
    for name, parameter in model.named_parameters():
        assert torch.equal(weights.read(name), parameter)


@pytest.mark.parametrize("saved_as", [transformers.BertModel, transformers.BertForMaskedLM])
def test_an_encoder_takes_any_batch_length_and_mask(tmp_path: Path, saved_as: Any) -> None:
    torch.manual_seed(0)
    model = saved_as(BERT).eval()
    model.save_pretrained(tmp_path)
    program = capture(tmp_path)
    assert program.info.kind == "module"
    assert [str(n.target) for n in program.placeholders()] == ["ids", "mask"]
    interpreter = ProgramInterpreter(program)
    base = getattr(model, "bert", model)
    for batch, length in ((1, 1), (3, 17), (2, 40)):
        ids = torch.randint(0, 128, (batch, length))
        mask = (torch.arange(length) < torch.randint(1, length + 1, (batch, 1))).long()
        with torch.no_grad():
            expected = base(input_ids=ids, attention_mask=mask).last_hidden_state
            found = interpreter.run(ids, mask)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    config = {k: v for k, v in (json.loads(file.read_text()) | changes).items() if v is not None}
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, r"config\.json does not say its model_type"),
        ({"model_type": "mamba2"}, "'mamba2' is not an architecture that can be captured; supp"),
        ({"model_type": "bloom"}, r"'bloom' models cannot be captured: .*\(ALiBi\)"),
        ({"architectures": ["LlamaForTokenClassification"]}, "is no causal language model"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised already \(gptq\)"),
        ({"intermediate_size": 96}, r"shape \[128, 64\], but .* asks for \[96, 64\]"),
        ({"num_hidden_layers": 3}, r"lacks 9 of the 31 tensors .* 'model\.layers\.2"),
        ({"num_attention_heads": "x"}, r"config\.json cannot be understood: .*expected int"),
        ({"hidden_act": "gulu"}, "no 'llama' model can be built"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "of the kind 'dynamic', whose frequencies change",
        ),
    ],
)
def test_a_configuration_that_will_not_do_is_refused(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    change_config(folder, **changes)
    with pytest.raises(CaptureError, match=message) as raised:
        capture(folder)
    assert "\n" not in str(raised.value)


def test_alibi_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "falcon", "alibi": True, "architectures": ["FalconForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CaptureError, match=r"this 'falcon' model cannot be captured: .*ALiBi"):
        capture(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_configuration_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CaptureError, match=r"config\.json is damaged"):
        capture(folder)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="is not a model's folder: it has no config"):
        capture(tmp_path)


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CaptureError, match="holds an adapter, not a model; merge it"):
        capture(folder)


def test_code_in_the_folder_is_not_run(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    change_config(folder, auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.C"})
    assert capture(folder).info.architecture == "llama"


def test_reading_stays_lazy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, name: str) -> None:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(SafetensorsSource, "read", refuse)
    program = capture(folder)
    with pytest.raises(AssertionError, match=r"model\.norm\.weight was read"):
        program.weights.get("model.norm.weight")
