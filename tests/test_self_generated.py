"""Text that a model writes follows its probabilities, begins anew, and is the same each time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models

from qcompiler import self_generated
from qcompiler.core.errors import QCompilerError
from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.core.program import Program
from qcompiler.frontend import capture
from qcompiler.self_generated import generate_tokens, write_tokens
from tests.families import tiny_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def captured() -> Program:
    return capture(tiny_model("llama"))


@pytest.fixture
def program(captured: Program) -> Program:
    return dataclasses.replace(captured, info=dataclasses.replace(captured.info, end_tokens=()))


def with_info(program: Program, **changes: Any) -> Program:
    return dataclasses.replace(program, info=dataclasses.replace(program.info, **changes))


class TableModel:
    """Logits that depend on the last token alone, in place of the model."""

    table = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))

    def __init__(self, program: Program, texts: int, context: int) -> None:
        self.steps = 0

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        return self.table[tokens]

    @staticmethod
    def bytes_per_text(program: Program, context: int) -> int:
        return 1


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_generated, "BatchedLanguageModel", TableModel)
    # Tests may put another in its place; it is put back.
    monkeypatch.setattr(TableModel, "table", TableModel.table)


def test_after_the_first_token_come_likeliest_ones_and_then_any(program: Program) -> None:
    tokens = generate_tokens(program, samples=6, sequence_length=16)
    assert (tokens.shape, tokens.dtype) == ((6, 16), torch.int64)
    model = TorchLanguageModel(program)
    counts = set()
    for text in tokens.tolist():
        likeliest = model.logits(text).argmax(-1)[:-1].tolist()
        same = [a == b for a, b in zip(likeliest, text[1:], strict=True)]
        assert all(same[:3])
        assert not all(same[3:])
        counts.add(same.index(False))
    assert len({text[0] for text in tokens.tolist()}) > 3
    assert counts <= {3, 4, 5, 6, 7}  # one that is drawn may be the likeliest as well


@pytest.mark.usefixtures("table")
def test_tokens_are_drawn_as_often_as_their_probability(program: Program) -> None:
    TableModel.table = torch.zeros(256, 256)
    TableModel.table[:, :4] = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    TableModel.table[:, 4:] = float("-1e30")
    tokens = generate_tokens(program, samples=100, sequence_length=106)
    drawn = tokens[:, 6:]
    shares = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.02, rtol=0)
    sharper = generate_tokens(program, samples=100, sequence_length=106, temperature=0.5)
    share = (sharper[:, 6:] == 3).float().mean().item()
    assert share == pytest.approx(0.16 / 0.3, abs=0.02)


@pytest.mark.usefixtures("table")
def test_at_a_temperature_near_zero_the_likeliest_token_is_drawn(program: Program) -> None:
    tokens = generate_tokens(program, samples=4, sequence_length=20, temperature=1e-300)
    assert torch.equal(tokens[:, 1:], TableModel.table[tokens[:, :-1]].argmax(-1))


@pytest.mark.parametrize("rows", [1, 20])
def test_a_share_of_the_probability_leads_to_its_token(rows: int) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(rows, 1000, generator=generator) * 3
    logits -= logits.amax(-1, keepdim=True)
    sums = logits.double().softmax(-1).cumsum(-1)
    # In the middle of a token's own share, of tokens that are likely and that are not.
    wanted = torch.randint(0, 1000, (rows,), generator=generator)
    before = torch.where(wanted > 0, sums[range(rows), wanted - 1], 0.0)
    middle = (before + sums[range(rows), wanted]) / 2
    assert torch.equal(self_generated._sample(logits, middle), wanted)


def test_the_seed_decides_and_the_global_state_does_not(program: Program, cache: Path) -> None:
    before = torch.get_rng_state()
    first = generate_tokens(program, samples=3, sequence_length=12, seed=1)
    other = generate_tokens(program, samples=3, sequence_length=12, seed=2)
    for file in (cache / "tokens").iterdir():
        file.unlink()
    torch.manual_seed(5)
    again = generate_tokens(program, samples=3, sequence_length=12, seed=1)
    torch.set_rng_state(before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_sample_does_not_depend_on_how_many_are_written_at_once(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = generate_tokens(program, samples=5, sequence_length=12)
    each = self_generated.BatchedLanguageModel.bytes_per_text(program, 12)
    monkeypatch.setattr(self_generated, "CACHE_BYTES", 2 * each)
    assert torch.equal(generate_tokens(program, samples=5, sequence_length=12), whole)
    assert torch.equal(generate_tokens(program, samples=4, sequence_length=12), whole[:4])


@pytest.mark.usefixtures("table")
def test_a_text_that_ends_is_followed_by_another(program: Program) -> None:
    end, answer = 7, 9
    TableModel.table = torch.full((256, 256), -1e30)
    TableModel.table[:, answer] = 0.0
    TableModel.table[answer, answer] = -1e30
    TableModel.table[answer, end] = 0.0
    letters = {letter: number for number, letter in enumerate("abcdefgh")}
    text = Tokenizer(models.WordLevel(letters, unk_token="a")).to_str()
    known = with_info(program, end_tokens=(end,), tokenizer_json=text)
    tokens = generate_tokens(known, samples=8, sequence_length=30)
    for row in tokens.tolist():
        assert row[1::3] == [answer] * 10
        assert row[2::3] == [end] * 10
    assert set(tokens[:, 0::3].flatten().tolist()) == set(range(7))


@pytest.mark.usefixtures("table")
def test_each_sample_has_the_begin_token_first(program: Program) -> None:
    tokens = generate_tokens(with_info(program, begin_token=1), samples=20, sequence_length=5)
    assert tokens[:, 0].tolist() == [1] * 20
    assert len(set(tokens[:, 1].tolist())) > 10


@pytest.mark.usefixtures("table")
def test_texts_begin_with_tokens_of_text(program: Program) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    tokenizer.add_special_tokens([AddedToken("<end>"), AddedToken("<other>")])
    known = with_info(program, tokenizer_json=tokenizer.to_str(), end_tokens=(2,))
    tokens = generate_tokens(known, samples=60, sequence_length=2)
    assert set(tokens[:, 0].tolist()) == {0, 1}


@pytest.mark.parametrize(("bytes_", "at_once"), [(10, 7), (6, 4), (3, 3), (1, 1), (0, 1)])
@pytest.mark.usefixtures("table")
def test_about_as_many_are_written_each_time(
    bytes_: int, at_once: int, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_generated, "CACHE_BYTES", bytes_)
    assert self_generated._at_once(program, 7, 8) == at_once


@pytest.mark.usefixtures("table")
def test_it_is_said_whether_tokens_were_kept(program: Program) -> None:
    numbers: Any = {"samples": 2, "sequence_length": 8, "seed": 0, "temperature": 1.0}
    first, again = (write_tokens(program, **numbers) for _ in range(2))
    assert first.seconds is not None
    assert again.seconds is None
    assert torch.equal(first.tokens, again.tokens)


def test_tokens_are_kept(program: Program, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    first = generate_tokens(program, samples=2, sequence_length=8)
    (file,) = (cache / "tokens").iterdir()
    monkeypatch.setattr(self_generated, "BatchedLanguageModel", None)
    assert torch.equal(generate_tokens(program, samples=2, sequence_length=8), first)
    assert file.stat().st_size < 500


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("change", ["seed", "temperature", "weight", "end", "begin", "length"])
def test_what_they_depend_on_makes_others(program: Program, cache: Path, change: str) -> None:
    generate_tokens(program, samples=2, sequence_length=8)
    options: dict[str, Any] = {"samples": 2, "sequence_length": 8}
    other = program
    if change == "weight":
        other = dataclasses.replace(program, weights=program.weights.copy())
        name = next(iter(other.weights))
        other.weights.put(name, other.weights.tensor(name) + 1)
    elif change in ("end", "begin"):
        value: Any = (3,) if change == "end" else 3
        other = with_info(program, **{f"{change}_token{'s' * (change == 'end')}": value})
    else:
        options[{"length": "sequence_length"}.get(change, change)] = 9
    generate_tokens(other, **options)
    assert len(list((cache / "tokens").iterdir())) == 2


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("damage", [b"", b"anything", "cut"])
def test_a_damaged_file_is_written_again(program: Program, cache: Path, damage: Any) -> None:
    first = generate_tokens(program, samples=2, sequence_length=8)
    (file,) = (cache / "tokens").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] if damage == "cut" else damage)
    assert torch.equal(generate_tokens(program, samples=2, sequence_length=8), first)
    assert file.read_bytes() == whole


def test_a_damaged_model_is_named(program: Program) -> None:
    broken = dataclasses.replace(program, weights=program.weights.copy())
    name = next(name for name in broken.weights if name.endswith("up_proj.weight"))
    broken.weights.put(name, broken.weights.tensor(name) * float("inf"))
    with pytest.raises(QCompilerError, match="logits are infinite or not a number"):
        generate_tokens(broken, samples=2, sequence_length=8)
