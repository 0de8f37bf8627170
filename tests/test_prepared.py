"""A prepared model trains in anybody's loop, and what is compiled of it answers as it does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("tvm")

import qcompiler
from qcompiler.core.errors import UsageError
from qcompiler.core.reference import sqnr
from qcompiler.prepared import PreparedModel
from tests.families import save_tiny_llama

pytestmark = [pytest.mark.tvm]

SETTINGS = ['insert-fake-quant.start="search"', 'quantize-kv.format="kv8"']
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("prepared") / "tiny-llama")


def prepare(folder: Path, *settings: str) -> PreparedModel:
    return qcompiler.prepare_qat(folder, settings=[*SETTINGS, *settings])


def test_it_is_an_ordinary_module(folder: Path) -> None:
    prepared = prepare(folder, 'insert-fake-quant.learn="weights"')
    names = dict(prepared.named_parameters())
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert "model.layers.0.self_attn.q_proj.weight_scale" in names
    assert all(p.requires_grad for p in names.values())
    out = prepared(IDS, labels=IDS)
    assert out.logits.shape[:2] == IDS.shape
    out.loss.backward()
    assert all(p.grad is not None for p in names.values())
    twin = prepare(folder, 'insert-fake-quant.learn="weights"')
    twin.load_state_dict(prepared.state_dict())


def test_a_plain_loop_lowers_the_loss(folder: Path) -> None:
    prepared = prepare(folder, 'insert-fake-quant.learn="weights"')
    optimizer = torch.optim.AdamW(prepared.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = prepared(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_the_trainer_of_transformers_trains_it(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    prepared = prepare(folder, 'insert-fake-quant.learn="weights"')
    samples = [{"input_ids": ids, "labels": ids} for ids in IDS.repeat(4, 1)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    before = float(prepared(IDS, labels=IDS).loss.detach())
    Trainer(model=prepared, args=arguments, train_dataset=samples).train()
    prepared.train()
    assert float(prepared(IDS, labels=IDS).loss.detach()) < before


def test_evaluation_is_in_the_arithmetic_that_is_deployed(folder: Path) -> None:
    prepared = prepare(folder)
    trained = prepared(IDS).logits.detach()
    prepared.eval()
    deployed = prepared(IDS).logits
    assert not deployed.requires_grad
    assert sqnr(deployed, trained) > 30
    # What is learned meanwhile is not overlooked.
    with torch.no_grad():
        next(prepared.parameters()).mul_(1.5)
    assert not torch.equal(prepared(IDS).logits, deployed)


def test_labels_that_do_not_count_are_left_out(folder: Path) -> None:
    prepared = prepare(folder)
    labels = IDS.clone()
    labels[:, 4:] = -100
    mask = torch.ones_like(IDS)
    mask[:, 4:] = 0
    padded = prepared(IDS, labels=labels, attention_mask=mask).loss
    alone = prepared(IDS[:, :4], labels=IDS[:, :4]).loss
    assert float((padded - alone).abs().detach()) < 1e-4
    with pytest.raises(UsageError, match="pad texts on the right"):
        prepared(IDS, attention_mask=mask.flip(1))


def test_the_float_model_can_be_learned_from(folder: Path) -> None:
    from qcompiler.core.interpreter import TorchLanguageModel
    from qcompiler.frontend import capture

    wanted = TorchLanguageModel(capture(folder)).logits(IDS[0].tolist())
    assert sqnr(wanted, prepare(folder).float_logits(IDS)[0]) > 80


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_artifact_writes_what_the_trained_model_writes(folder: Path, tmp_path: Path) -> None:
    prepared = prepare(folder, 'insert-fake-quant.learn="weights"')
    optimizer = torch.optim.AdamW(prepared.parameters(), lr=1e-3)
    for _ in range(4):
        prepared(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    prepared.eval()
    artifact = qcompiler.compile(prepared, output=tmp_path / "trained.qc")
    model = artifact.load(threads=1)
    tokens = IDS[0].tolist()
    assert sqnr(prepared(IDS[:1]).logits[0], torch.from_numpy(model.logits(tokens))) > 30
    scored = [
        qcompiler.evaluate(one, text="some words to be scored, and then some more of them")
        for one in (prepared, tmp_path / "trained.qc")
    ]
    assert scored[0].nll == pytest.approx(scored[1].nll, abs=1e-3)
    passes = [step["name"] for step in artifact.manifest.pipeline]
    assert "insert-fake-quant" in passes
    assert "train-fake-quant" not in passes


def test_what_contradicts_a_prepared_model_is_refused(folder: Path) -> None:
    prepared = prepare(folder)
    with pytest.raises(UsageError, match="has its target, pipeline and settings"):
        qcompiler.compile(prepared, pipeline="w4a8")
    with pytest.raises(UsageError, match="no 'insert-fake-quant'"):
        qcompiler.prepare_qat(folder, "w4a8")
