"""The scheme of every operator as a grid."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.core.artifact import Manifest
from qcompiler.core.errors import ConfigError
from qcompiler.core.formats import PerGroup, QuantScheme
from qcompiler.report.content import Report
from qcompiler.report.grid import Cell, Grid, make_grid


@dataclass(frozen=True)
class Bits:
    """The schemes of all operators: as a grid, and a line for each scheme."""

    grid: Grid
    legend: list[tuple[Cell, str, int, str]]
    """Cell, scheme, operators, share of the weights."""


def bits_view(manifest: Manifest, report: Report) -> Bits | None:
    """Return what the page shows of the plan; None where nothing is planned."""
    schemes = {name: one.scheme for name, one in report.operators.items()} or dict(manifest.plan)
    if not schemes:
        return None
    texts = _scheme_texts([scheme for scheme in schemes.values() if scheme])
    heat = {scheme: _heat(scheme) for scheme in texts}

    def cell(name: str, scheme: str | None) -> Cell:
        facts = report.operators.get(name)
        about = f"{name}: {scheme or 'float'}"
        if facts is not None:
            shape = "×".join(map(str, facts.shape))
            about += f", {shape}, {facts.bits_per_weight:.2f} bits per weight"
        return Cell(
            text=texts[scheme] if scheme else "float", heat=heat.get(scheme or ""), title=about
        )

    legend = []
    total = sum(one.weights for one in report.operators.values())
    for scheme in sorted(set(schemes.values()), key=lambda s: (heat.get(s or "", 9.0), s or "")):
        names = [name for name, own in schemes.items() if own == scheme]
        weights = sum(report.operators[n].weights for n in names if n in report.operators)
        share = f"{weights / total:.1%}" if total else ""
        legend.append((cell(names[0], scheme), scheme or "float", len(names), share))
    return Bits(make_grid({name: cell(name, own) for name, own in schemes.items()}), legend)


def _heat(scheme: str) -> float:
    """Colour a scheme by its bits, those of its scales included.

    >>> _heat("w2a8") < _heat("w4a8g64") < _heat("w4a8g32") < _heat("w8a8g32") <= 1
    True
    """
    parsed = _parsed(scheme)
    bits = 8.0 if parsed is None else parsed.weight.bits_per_weight(4096)
    return min(max((bits - 1.5) / 7.0, 0.0), 1.0)


def _scheme_texts(schemes: list[str]) -> dict[str, str]:
    """Write schemes as their bits, with the group where only that tells two apart."""
    found = dict.fromkeys(schemes, "")
    parsed = {text: _parsed(text) for text in found}
    bits = {text: str(s.weight.bits) if s else text for text, s in parsed.items()}
    for text, scheme in parsed.items():
        alone = sum(other == bits[text] for other in bits.values()) == 1
        if alone or scheme is None:
            found[text] = bits[text]
            continue
        group = scheme.weight.granularity
        size = f"g{group.size}" if isinstance(group, PerGroup) else "ch"
        found[text] = f"{bits[text]} {size}{'' if scheme.weight.symmetric else 'z'}"
    if len(set(found.values())) < len(found):
        return {text: text for text in found}
    return found


def _parsed(text: str) -> QuantScheme | None:
    try:
        return QuantScheme.parse(text)
    except ConfigError:
        return None
