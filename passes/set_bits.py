"""Plan the schemes of operators by the names they have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from passes.rules import Rule, check_group, check_matches, check_target, operators
from qcompiler.core.errors import ConfigError
from qcompiler.core.formats import QuantScheme
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage

__all__ = ["Rule", "SetBits"]


@dataclass(frozen=True, kw_only=True)
class SetBits(Pass):
    """Plan each operator with the scheme of the last rule that matches it.

    Operators of one tied weight have one scheme, that of the last rule to match any of them. What
    is planned already and no rule matches stays planned.
    """

    name: ClassVar[str] = "set-bits"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.PLANNED})
    yields: ClassVar[Stage] = Stage.PLANNED

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if not self.rules:
            raise ConfigError("there are no rules; give at least one, such as {scheme = 'w8a8'}")

    def run(self, program: Program, context: PassContext) -> None:
        found = list(operators(program))
        for rule in self.rules:
            check_matches(self.name, rule, found)
        for operator in found:
            matching = [rule for rule in self.rules if rule.matches(operator)]
            if not matching:
                continue
            if operator.obstacle is not None:
                context.note(self.name, f"{operator.names[0]}: stays float, {operator.obstacle}")
                continue
            for name in operator.graph_names:
                program.plan.pop(name, None)
            if matching[-1].scheme == "float":
                continue
            scheme = QuantScheme.parse(matching[-1].scheme)
            check_group(scheme, operator)
            check_target(scheme, operator, context.target)
            program.plan |= dict.fromkeys(operator.graph_names, scheme)
