"""What measuring passes find out about a program: typed results, kept in `Program.facts`.

An operator is named after the entry of its weight, without ".weight": a tied weight, which has one
scheme, has one name here. Schemes are in their short form, such as "w4a8g64".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


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
