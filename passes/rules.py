"""Operators by name and kind, and rules that say which scheme they get."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from torch import fx

from qcompiler.core import ops
from qcompiler.core.errors import ConfigError
from qcompiler.core.formats import PerGroup, QuantScheme
from qcompiler.core.printer import target_name
from qcompiler.core.program import Program, operator_name
from qcompiler.core.support import check_supported
from qcompiler.core.target import Target

Kind = Literal["any", "linear", "embedding", "head"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Operators, by a pattern of their names and by what they do, and the scheme they get.

    `pattern` is a glob, such as `model.layers.*.mlp.*`. `kind` narrows it to products with a weight
    ("linear", the head among them), tables ("embedding") or the product that gives a language
    model's logits ("head"). The scheme "float" leaves operators as they are.
    """

    pattern: str = "*"
    kind: Kind = "any"
    scheme: str

    def __post_init__(self) -> None:
        if not self.pattern:
            raise ConfigError("an empty pattern matches nothing; '*' matches everything")
        if self.scheme != "float":
            QuantScheme.parse(self.scheme)

    def matches(self, operator: Operator) -> bool:
        if self.kind != "any" and self.kind not in operator.kinds:
            return False
        return any(fnmatchcase(name, self.pattern) for name in operator.names)


@dataclass
class Operator:
    """Everything that reads one weight: a product, a table, or both when they are tied.

    `names` are all it may be called, first that of its `entry`, by which facts know it.
    """

    entry: str
    shape: tuple[int, int]
    graph_names: list[str]
    names: list[str]
    kinds: set[Kind] = field(default_factory=set)
    obstacle: str | None = None

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def k(self) -> int:
        return self.shape[1]


def operators(program: Program) -> Iterable[Operator]:
    """Return the products and tables of a program, one for each weight, in graph order."""
    weights = program.weights
    found: dict[str, Operator] = {}
    last = next((n for n in reversed(program.graph.nodes) if n.target is ops.linear), None)
    logits = program.info.vocab_size if program.info.kind == "causal-lm" else None
    for node in program.graph.nodes:
        if node.op != "get_attr" or not _is_matrix(node):
            continue
        entry = weights.resolve(str(node.target))
        if entry not in found:
            others = [alias for alias, of in weights.aliases.items() if of == entry]
            names = [operator_name(n) for n in (entry, *others)]
            n, k = weights.shape(entry)
            found[entry] = Operator(entry, (n, k), [], names)
        operator = found[entry]
        if operator_name(str(node.target)) not in operator.graph_names:
            operator.graph_names.append(operator_name(str(node.target)))
        for user in node.users:
            _classify(user, node, operator)
            # A product inside the model may have as many outputs as there are tokens.
            if user is last and operator.shape[0] == logits:
                operator.kinds.add("head")
    return [operator for operator in found.values() if operator.kinds]


def _is_matrix(node: fx.Node) -> bool:
    val = node.meta["val"]
    return len(val.shape) == 2 and val.dtype.is_floating_point


def _classify(user: fx.Node, weight: fx.Node, operator: Operator) -> None:
    """Note what a user of a weight makes it, or that it cannot read codes."""
    place = user.args[1] if len(user.args) > 1 else None
    if place is weight and user.args[0] is not weight and user.target is ops.linear:
        operator.kinds.add("linear")
    elif place is weight and user.target is ops.embedding:
        operator.kinds.add("embedding")
    else:
        operator.obstacle = f"its weight is also read by {target_name(user)}"


def check_matches(step: str, rule: Rule, operators: list[Operator]) -> None:
    """Refuse a pattern that is certainly a mistake: one of names, none of which is there.

    `step` is the pass that the rule was given to.
    """
    names = [name for operator in operators for name in operator.names]
    if rule.pattern == "*" or any(fnmatchcase(name, rule.pattern) for name in names):
        if rule.pattern == "*" or any(rule.matches(operator) for operator in operators):
            return
        raise ConfigError(
            f"pass '{step}': what the pattern '{rule.pattern}' matches is no {rule.kind}; "
            "leave kind out, or choose another"
        )
    # One of each kind of layer is enough to choose from.
    plain = rule.pattern.replace("*", "0")
    near = difflib.get_close_matches(plain, names, n=3, cutoff=0.4) or names[:3]
    raise ConfigError(
        f"pass '{step}': the pattern '{rule.pattern}' matches no operator; "
        f"names near it: {', '.join(near) or 'none, for it has no weights to quantise'}"
    )


def check_group(scheme: QuantScheme, operator: Operator) -> None:
    name, k = operator.names[0], operator.k
    way_out = f"or leave it float with {{pattern = '{name}', scheme = 'float'}}"
    if k % 8:
        raise ConfigError(
            f"'{name}' has {k} input features, and only multiples of 8 can be quantised; "
            f"narrow the patterns, {way_out}"
        )
    if isinstance(scheme.weight.granularity, PerGroup) and scheme.weight.granularity.size > k:
        fitting = [size for size in (8, 16, 32, 64, 128, 256) if size <= k]
        raise ConfigError(
            f"the group of {scheme} does not fit '{name}', which has {k} input features; "
            f"sizes that fit: {', '.join(map(str, fitting))}; {way_out}"
        )


def check_target(scheme: QuantScheme, operator: Operator, target: Target) -> None:
    # A table alone multiplies nothing: how its rows are stored is all that counts.
    check_supported(
        scheme, target, f"'{operator.names[0]}'", storage_only=operator.kinds == {"embedding"}
    )
