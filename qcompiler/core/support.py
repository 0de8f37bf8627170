"""Which schemes a target has kernels for, and the nearest to one that it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase

from qcompiler.core.errors import UnsupportedError
from qcompiler.core.formats import PerGroup, PerToken, QuantScheme, TensorFormat
from qcompiler.core.target import Target


def has_kernels(scheme: QuantScheme, target: Target, *, storage_only: bool = False) -> bool:
    """Tell whether a target computes with weights of `scheme` as they are.

    `storage_only` is said of a table, whose rows are only looked up: a target that multiplies by
    such weights reads them too, whatever becomes of activations.
    """
    wanted = _with_activations(scheme) if storage_only else scheme
    return any(fnmatchcase(str(wanted), pattern) for pattern in target.schemes)


def widened(scheme: QuantScheme) -> QuantScheme:
    """Return the scheme that stores the same codes in 4 or 8 bits.

    >>> str(widened(QuantScheme.parse("w3a8g32")))
    'w4a8g32'
    """
    return replace(scheme, weight=replace(scheme.weight, bits=4 if scheme.weight.bits <= 4 else 8))


def check_supported(
    scheme: QuantScheme, target: Target, what: str, *, storage_only: bool = False
) -> None:
    """Refuse a scheme that no kernel of `target` serves, nor would if its codes were widened.

    `what` names the operator; `storage_only` as in `has_kernels`.

    Raises:
        UnsupportedError: naming the nearest scheme that there is.
    """
    if any(has_kernels(s, target, storage_only=storage_only) for s in (scheme, widened(scheme))):
        return
    near = next((s for s in _neighbours(scheme) if has_kernels(s, target)), None)
    way_out = f"the nearest there is: {near}" if near else f"there are: {', '.join(target.schemes)}"
    raise UnsupportedError(
        f"{target.name} has no kernels for {scheme}, wanted for {what}; {way_out}"
    )


def _with_activations(scheme: QuantScheme) -> QuantScheme:
    """Return a weight-only scheme with int8 activations, scaled as its weights are."""
    if scheme.activation is not None:
        return scheme
    rows = scheme.weight.granularity
    granularity = rows if isinstance(rows, PerGroup) else PerToken()
    form = TensorFormat(bits=8, granularity=granularity, scale_bits=32)
    return QuantScheme(scheme.weight, form)


def _neighbours(scheme: QuantScheme) -> Iterator[QuantScheme]:
    """Yield like schemes, nearest first: other bits, then no zero point, then int8 activations."""
    for base in (scheme, _with_activations(scheme)):
        for symmetric in dict.fromkeys((base.weight.symmetric, True)):
            for distance in range(7):
                # More bits lose nothing but size, so they come first.
                for bits in (base.weight.bits + distance, base.weight.bits - distance):
                    if 2 <= bits <= 8:
                        weight = replace(base.weight, bits=bits, symmetric=symmetric)
                        yield replace(base, weight=weight)
