"""What measuring passes find out about a program: typed results, kept in `Program.facts`.

An operator is named after the entry of its weight, without ".weight": a tied weight, which has one
scheme, has one name here. Schemes are in their short form, such as "w4a8g64".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qcompiler.core.weights import WeightStore


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What each operator costs in quality, in each scheme it may get.

    `loss` is, by operator and scheme, the predicted rise of the loss when that operator alone is
    quantised. Rises are added up to predict that of a plan. They are nats per token, or, where
    `relative`, an unknown multiple thereof.
    """

    metric: str
    loss: Mapping[str, Mapping[str, float]]
    relative: bool = False


@dataclass(frozen=True, kw_only=True)
class Hessians:
    """The second moments of what products read: H = Σ x xᵀ / tokens, [k, k] float32.

    Half the Hessian of a product's mean squared error in any row of its weight. Products that read
    one value share a matrix: `inputs` gives the name of that value by operator, `matrices` the
    matrix by the value's name (read from a file, perhaps), `tokens` how many x were summed.
    """

    inputs: Mapping[str, str]
    matrices: Mapping[str, torch.Tensor]
    tokens: Mapping[str, int]

    def of(self, operator: str) -> torch.Tensor:
        """Return the matrix of an operator's inputs, [k, k].

        Raises:
            KeyError: the operator was not measured.
        """
        return self.matrices[self.inputs[operator]]


@dataclass(frozen=True, kw_only=True)
class OperatorCost:
    """What an operator costs in one scheme: bytes as packed, seconds a token and a whole prompt.

    The seconds are None where no time was measured or estimated.
    """

    bits: float
    bytes: int
    decode_s: float | None = None
    prefill_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What each operator costs in each scheme, and what all the rest of the model costs.

    `choices` are by operator and scheme, "float" among them; an operator that fusing makes part of
    a larger product has its share of that. `weights` are the entries of each operator's weight.
    `rest` is what no operator accounts for: norms, attention, tables, the calls themselves.
    `prompt_tokens` is the length of the prompt. `source` says where seconds are from: "timer",
    "roofline", or "" where there are none.
    """

    choices: Mapping[str, Mapping[str, OperatorCost]]
    weights: Mapping[str, int]
    rest: OperatorCost
    prompt_tokens: int = 512
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class PlanPoint:
    """One plan: the predicted rise of the loss and its totals, by the name of the budget.

    Totals are those of `Allocation`; `label` names the plan, such as "uniform w4a8g64".
    """

    loss: float
    totals: Mapping[str, float]
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The plan that `allocate-bits` found, and what it is worth.

    `plan` is the scheme by operator, "float" among them. `bound` is a loss that no plan within the
    budgets can be below, `gap` = (loss − bound) / |loss|. `totals` and `budgets` go by the names
    "bits_per_weight" (of the operators that were free to choose), "bytes", "decode_ms" and
    "prefill_ms" (of the whole model). `prices` say how much the loss falls per unit by which a
    budget grows. `front` are the plans of other budgets that no other plan beats, `others` what
    simpler ways to allocate lead to. Losses are `relative` where those of `Sensitivity` are.
    """

    plan: Mapping[str, str]
    loss: float
    bound: float
    gap: float
    totals: Mapping[str, float]
    budgets: Mapping[str, float]
    prices: Mapping[str, float]
    front: tuple[PlanPoint, ...] = ()
    others: tuple[PlanPoint, ...] = ()
    relative: bool = False


@dataclass(frozen=True, kw_only=True)
class FakeQuantization:
    """What is learned of a fake-quantised program, and what it is to stay close to.

    `trainable` are names in the weight store, `scales` those among them that are scales or clips,
    which learn at a rate of their own. `float_weights` are the weights before they were rounded.
    """

    trainable: tuple[str, ...]
    scales: frozenset[str]
    float_weights: WeightStore
