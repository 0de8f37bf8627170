"""Plain modules and exported programs: the same results, or the line that is in the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional

from qcompiler.core import ops
from qcompiler.core.errors import CaptureError
from qcompiler.core.interpreter import ProgramInterpreter
from qcompiler.core.program import Program, value
from qcompiler.core.verify import verify
from qcompiler.frontend import capture

aten = torch.ops.aten


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.5), nn.LayerNorm(16), nn.Linear(16, 4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).softmax(-1)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.first(x)), inplace=True)
        x = functional.max_pool2d(self.second(x), 2)
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Function(nn.Module):
    """A module made of a function and a weight."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.w = nn.Parameter(torch.arange(4.0))
        self.register_buffer("count", torch.zeros(4))

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def run(program: Program, *inputs: torch.Tensor) -> Any:
    verify(program)
    with torch.no_grad():
        return ProgramInterpreter(program).run(*inputs)


def targets(program: Program) -> set[Any]:
    return {n.target for n in program.graph.nodes if n.op == "call_function"}


def test_a_perceptron_with_a_dynamic_batch() -> None:
    model = Perceptron().eval()
    shapes = {"x": {0: Dim("batch", min=1)}}
    program = capture(model, example_inputs=torch.randn(3, 8), dynamic_shapes=shapes)
    assert (program.info.kind, program.info.architecture) == ("module", "Perceptron")
    assert set(program.weights) == set(dict(model.named_parameters()))
    for batch in (1, 3, 7):
        x = torch.randn(batch, 8)
        torch.testing.assert_close(run(program, x), model(x))


def test_convolutions_in_place_and_batch_norm() -> None:
    model = Convolutions()
    for norm in (model.norm.running_mean, model.norm.running_var):
        norm.data.uniform_(0.5, 2)
    program = capture(model, example_inputs=(torch.randn(2, 3, 16, 16),))
    assert model.training, "the module must be as it was"
    assert not any(getattr(t, "_schema", None) and t._schema.is_mutable for t in targets(program))
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(run(program, x), model.eval()(x))


def test_weights_are_shared_with_the_module_not_copied() -> None:
    model = Perceptron()
    program = capture(model, example_inputs=torch.randn(1, 8))
    stored = program.weights.tensor("layers.0.weight")
    assert stored.data_ptr() == model.layers[0].weight.data_ptr()


def test_inputs_by_name_and_several_results() -> None:
    model = Function(lambda self, a, b: {"sum": a + b * self.w, "none": None, "list": [a - b]})
    program = capture(model, example_inputs=(torch.ones(4), torch.ones(4)))
    total, other = run(program, torch.ones(4), torch.full((4,), 2.0))
    assert total.tolist() == [1, 3, 5, 7]
    assert other.tolist() == [-1] * 4


def test_keyword_inputs() -> None:
    class Scale(nn.Module):
        def forward(self, x: torch.Tensor, *, by: torch.Tensor) -> torch.Tensor:
            return x * by

    program = capture(Scale(), example_inputs={"x": torch.ones(2), "by": torch.ones(2)})
    assert [str(n.target) for n in program.placeholders()] == ["x", "by"]
    assert run(program, torch.ones(2), torch.full((2,), 3.0)).tolist() == [3, 3]


def test_shared_parameters_are_one_weight() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(6, 4)
            self.head = nn.Linear(4, 6, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(ids))

    program = capture(Tied(), example_inputs=torch.tensor([1, 2]))
    assert list(program.weights) == ["table.weight"]
    assert program.weights.aliases == {"head.weight": "table.weight"}


def test_constants_become_weights() -> None:
    model = Function(lambda self, x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]))
    program = capture(model, example_inputs=torch.zeros(4))
    assert run(program, torch.zeros(4)).tolist() == [1, 2, 3, 4]
    assert len(program.weights) == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: _without_gradients(x) * self.w,
        lambda self, x: _autocast(x) * self.w,
        lambda self, x: (x.to(torch.float32).contiguous().clone().detach() + self.w).view(2, 2),
        lambda self, x: x.expand(4)[0:4] * self.w.type_as(x),
        lambda self, x: x.add(0).add_(self.w).mul_(2),
        lambda self, x: x.reshape(2, 2).t().contiguous().view(-1),
    ],
)
def test_what_computes_nothing_is_gone(function: Callable[..., Any]) -> None:
    model = Function(function)
    program = capture(model, example_inputs=torch.ones(4))
    names = " ".join(str(t) for t in targets(program))
    words = ("wrap", "grad", "clone", "contiguous", "detach", "view", "type_as", "expand", "slice")
    assert not [word for word in words if word in names]
    x = torch.randn(4)
    torch.testing.assert_close(run(program, x), model(x))


@torch.no_grad()
def _without_gradients(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    return y + 1


def _autocast(x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return x.sin().cos()


def test_a_reshape_survives_the_loss_of_a_copy() -> None:
    model = Function(lambda self, x: x.transpose(0, 1).contiguous().view(-1))
    program = capture(model, example_inputs=torch.ones(2, 3))
    assert aten.reshape.default in targets(program)
    x = torch.randn(2, 3)
    torch.testing.assert_close(run(program, x), model(x))


def test_casts_have_one_form() -> None:
    model = Function(lambda self, ids: ids.float() + ids.to(dtype=torch.float32) + self.w)
    program = capture(model, example_inputs=torch.ones(4, dtype=torch.int64))
    assert targets(program) == {aten.to.dtype, aten.add.Tensor}


def test_shapes_are_kept_on_every_node() -> None:
    program = capture(Perceptron(), example_inputs=torch.randn(3, 8))
    shapes = [tuple(value(n).shape) for n in program.graph.nodes if n.op == "call_function"]
    assert shapes[0] == (3, 16)
    assert shapes[-1] == (3, 4)


def grow(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    self.count.add_(x)
    return self.count * 2


def fill(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x.mul_(2)


def branch(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if x.sum() > 0:
        return x
    return -x


def leave_torch(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.sin(x.numpy()))


def mismatched(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x @ torch.ones(5, 2)


def crash(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x + self.nothing


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (grow, "changes its own state 'count' while it runs"),
        (fill, "changes its input"),
        (branch, r"Function cannot be captured: .*\(.*test_module\.py:\d+: if x\.sum\(\) > 0:\)"),
        (leave_torch, r"Function cannot be captured: .*test_module\.py:\d+: .*x\.numpy\(\)"),
        (mismatched, r"Function cannot be captured: .*test_module\.py:\d+: return x @ torch\.ones"),
        (crash, r"has no attribute 'nothing' .*test_module\.py:\d+: return x \+ self\.nothing"),
    ],
)
def test_what_cannot_be_captured_is_named(
    function: Callable[..., Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Function(function)
    with pytest.raises(CaptureError, match=message) as raised:
        capture(model, example_inputs=torch.ones(4))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
    assert capfd.readouterr() == ("", ""), "nothing but the error may speak"
    assert "forward" not in vars(model)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda self, x: x * self.w, "size n cannot be dynamic, since the model fixes it to 4"),
        (lambda self, x: x.reshape(2, -1), "size n cannot be dynamic, since it holds only where"),
    ],
)
def test_a_size_that_cannot_be_dynamic_is_named(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(
            Function(function), example_inputs=torch.ones(4), dynamic_shapes=(({0: Dim("n")},),)
        )


def test_other_precisions_are_refused() -> None:
    with pytest.raises(CaptureError, match="computes with 'w' as float16; make it float32"):
        capture(Function(lambda self, x: x * self.w).half(), example_inputs=torch.ones(4).half())


def test_a_number_as_input_is_refused() -> None:
    model = Function(lambda self, x, n: x * n)
    shapes = ((None, Dim.DYNAMIC),)
    with pytest.raises(CaptureError, match=r"computes with its input .* a number and not a tensor"):
        capture(model, example_inputs=(torch.ones(4), 3), dynamic_shapes=shapes)


def test_a_result_that_is_a_number_is_refused() -> None:
    model = Function(lambda self, x: (x, x.shape[0]))
    shapes = (({0: Dim("n")},),)
    with pytest.raises(CaptureError, match="which is not a tensor"):
        capture(model, example_inputs=torch.ones(4), dynamic_shapes=shapes)


def test_an_exported_program_is_taken_over() -> None:
    model = Perceptron().eval()
    exported = torch.export.export(model, (torch.randn(2, 8),))
    program = capture(exported)
    x = torch.randn(2, 8)
    torch.testing.assert_close(run(program, x), model(x))


def test_an_exported_program_with_state_and_constants() -> None:
    model = Function(lambda self, x: x + self.count + self.w + torch.tensor([1.0, 2.0, 3.0, 4.0]))
    model.count.fill_(5)
    program = capture(torch.export.export(model, (torch.zeros(4),)))
    assert run(program, torch.zeros(4)).tolist() == [6, 8, 10, 12]
    assert set(program.weights) >= {"count", "w"}


def test_a_program_exported_while_it_trained_is_refused() -> None:
    class Dropping(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.dropout(x, 0.5, training=True)

    exported = torch.export.export(Dropping(), (torch.ones(2),))
    with pytest.raises(CaptureError, match=r"exported while it trained.*after eval\(\)"):
        capture(exported)


def test_attention_of_an_encoder_is_not_taken_for_a_decoder() -> None:
    def attend(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(x, x, x)

    program = capture(Function(attend), example_inputs=torch.randn(1, 2, 3, 4))
    assert ops.attention not in targets(program)
    assert aten.scaled_dot_product_attention.default in targets(program)
