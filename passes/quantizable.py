"""The weights of a program that may be quantised, whether a plan says so or not."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from passes.planned import QUANTIZED
from qcompiler.core import ops
from qcompiler.core.formats import PerGroup, QuantScheme
from qcompiler.core.program import Program, operator_name, weight_of


@dataclass(frozen=True)
class Quantizable:
    """An entry of the weight store that only products and tables read, and these."""

    entry: str
    shape: tuple[int, int]
    products: tuple[fx.Node, ...]
    tables: tuple[fx.Node, ...]

    @property
    def operator(self) -> str:
        """The name that facts have for it."""
        return operator_name(self.entry)

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """All that reads the weight."""
        return (*self.tables, *self.products)

    def schemes(self, choices: tuple[str, ...]) -> dict[str, QuantScheme]:
        """Return the choices that fit the weight: whole bytes in a row, groups within it."""
        k = self.shape[1]
        schemes = {text: QuantScheme.parse(text) for text in choices if k % 8 == 0}
        return {text: scheme for text, scheme in schemes.items() if _group(scheme) <= k}


def quantizable(program: Program) -> dict[str, Quantizable]:
    """Return the weights that may be quantised, by entry, in graph order."""
    readers: dict[str, list[fx.Node]] = {}
    obstacles: set[str] = set()
    for node in program.graph.nodes:
        if node.op != "get_attr" or not _is_matrix(node):
            continue
        entry = program.weights.resolve(str(node.target))
        for user in node.users:
            readers.setdefault(entry, []).append(user)
            if not _computes_with_codes(user, node):
                obstacles.add(entry)
    found = {}
    for entry, nodes in readers.items():
        if entry not in obstacles:
            n, k = program.weights.shape(entry)
            products = tuple(node for node in nodes if node.target is ops.linear)
            tables = tuple(node for node in nodes if node.target is ops.embedding)
            found[entry] = Quantizable(entry, (n, k), products, tables)
    return found


def _computes_with_codes(user: fx.Node, weight: fx.Node) -> bool:
    """Tell whether a user reads the weight as a matrix that may have codes, and no other way."""
    return user.target in QUANTIZED and weight_of(user) is not None and user.args[0] is not weight


def _is_matrix(node: fx.Node) -> bool:
    val = node.meta["val"]
    return len(val.shape) == 2 and val.dtype.is_floating_point


def _group(scheme: QuantScheme) -> int:
    granularity = scheme.weight.granularity
    return granularity.size if isinstance(granularity, PerGroup) else 1
