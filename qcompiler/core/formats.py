"""What quantised numbers mean: granularity, format of a tensor, scheme of an operator."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qcompiler.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale for each output feature (row) of a weight."""


@dataclass(frozen=True, slots=True)
class PerToken:
    """One scale for each row of an activation."""


@dataclass(frozen=True, slots=True)
class PerGroup:
    """One scale for each `size` consecutive input features; the last group may be shorter."""

    size: int


Granularity = PerTensor | PerChannel | PerToken | PerGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFormat:
    """What the codes of one tensor mean: x ≈ scale · (code − zero_point).

    Symmetric codes are signed and have no zero point; asymmetric codes are unsigned and have an
    integer zero point per scale. Scales are `scale_bits` wide floats.
    """

    bits: int
    granularity: Granularity
    symmetric: bool = True
    scale_bits: int = 16

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ConfigError(f"{self.bits} bits are not supported; choose 2 to 8")
        if isinstance(self.granularity, PerGroup) and (
            self.granularity.size < 8 or self.granularity.size % 8
        ):
            raise ConfigError(
                f"group size {self.granularity.size} is not supported; choose a multiple of 8, "
                "for instance 32, 64 or 128"
            )

    def __str__(self) -> str:
        """Say the format in short.

        >>> str(TensorFormat(bits=4, granularity=PerGroup(32), symmetric=False))
        'uint4 per 32'
        """
        match self.granularity:
            case PerGroup(size):
                shared = str(size)
            case PerChannel():
                shared = "channel"
            case PerToken():
                shared = "token"
            case PerTensor():
                shared = "tensor"
        return f"{'' if self.symmetric else 'u'}int{self.bits} per {shared}"

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code.

        >>> TensorFormat(bits=4, granularity=PerGroup(32)).code_range
        (-8, 7)
        >>> TensorFormat(bits=4, granularity=PerGroup(32), symmetric=False).code_range
        (0, 15)
        """
        if self.symmetric:
            return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        return 0, (1 << self.bits) - 1

    @property
    def is_static(self) -> bool:
        """Whether one scale serves a whole activation, so that it can be known beforehand."""
        return isinstance(self.granularity, PerTensor)

    def group_size(self, k: int) -> int:
        """Input features that share a scale, for a tensor with `k` of them."""
        return min(self.granularity.size, k) if isinstance(self.granularity, PerGroup) else k

    def groups(self, k: int) -> int:
        """Number of scales along `k` input features.

        >>> TensorFormat(bits=4, granularity=PerGroup(128)).groups(576)
        5
        """
        return -(-k // self.group_size(k))

    def bits_per_weight(self, k: int) -> float:
        """Storage of one weight, scales and zero points included."""
        extra = self.scale_bits + (0 if self.symmetric else 8)
        return self.bits + extra * self.groups(k) / k


_SCHEME = re.compile(r"w(?P<w>\d+)(?:a(?P<a>\d+))?(?:g(?P<g>\d+))?(?P<z>z)?(?P<scale>t|s|ts|st)?")


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """Formats of one linear operator.

    Written `w<bits>[a<bits>][g<size>][z][t|s]`: weight bits, activation bits (8: int8, scaled as it
    arrives), group size shared by weight and activation (per channel and per token without it), `z`
    for an integer zero point of the weight, `t` for one activation scale per token in spite of
    grouped weights, `s` for a static one: of the whole tensor, and known before the model runs.
    """

    weight: TensorFormat
    activation: TensorFormat | None = None

    @property
    def is_static(self) -> bool:
        """Whether the activation's scale is known before the model runs."""
        return self.activation is not None and self.activation.is_static

    @classmethod
    def parse(cls, text: str) -> QuantScheme:
        """Read a scheme from its short form.

        >>> str(QuantScheme.parse("w4a8g32"))
        'w4a8g32'
        >>> str(QuantScheme.parse("w8a8s").activation)
        'int8 per tensor'
        """
        match = _SCHEME.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"'{text}' is not a scheme; write w<bits>[a<bits>][g<group>][z][t|s], "
                "for instance w4a8g32 or w8a8"
            )
        group = PerGroup(int(match["g"])) if match["g"] else None
        scale = match["scale"] or ""
        if len(scale) > 1:
            raise ConfigError(
                f"'{text}': 't' is one activation scale per token and 's' one for the whole "
                "tensor; leave one of them out"
            )
        if scale == "t" and not (group and match["a"]):
            raise ConfigError(
                f"'{text}': 't' needs both a group and activation bits, as in w4a8g64t"
            )
        if scale == "s" and not match["a"]:
            raise ConfigError(f"'{text}': 's' needs activation bits, as in w8a8s")
        weight = TensorFormat(
            bits=int(match["w"]), granularity=group or PerChannel(), symmetric=not match["z"]
        )
        if match["a"] is None:
            return cls(weight)
        if match["a"] != "8":
            raise ConfigError(
                f"'{text}': activations have 8 bits or stay float; write a8 or leave it out"
            )
        shared: Granularity = PerToken() if scale == "t" or group is None else group
        if scale == "s":
            shared = PerTensor()
        return cls(weight, TensorFormat(bits=8, granularity=shared, scale_bits=32))

    def __str__(self) -> str:
        text = f"w{self.weight.bits}"
        if self.activation is not None:
            text += f"a{self.activation.bits}"
        if isinstance(self.weight.granularity, PerGroup):
            text += f"g{self.weight.granularity.size}"
        text += "" if self.weight.symmetric else "z"
        grouped = isinstance(self.weight.granularity, PerGroup)
        if grouped and self.activation and isinstance(self.activation.granularity, PerToken):
            text += "t"
        return f"{text}s" if self.is_static else text
