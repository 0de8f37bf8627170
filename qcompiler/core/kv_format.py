"""How a row of a key or value cache, one head of one token, is stored in few bits."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qcompiler.core.errors import ConfigError, UnsupportedError

FLOAT = "float"

_TEXT = re.compile(r"kv(?P<bits>[48])(?:g(?P<group>\d+))?(?P<rotated>r)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class KvFormat:
    """Written `kv<bits>[g<size>][r]`, such as kv8 or kv4g16r; with one for keys and one for values
    of a layer, kv8/kv4g32.

    Codes of 8 bits are signed and stand for code · scale; those of 4 bits are unsigned and stand
    for code · scale + least. Each `group` of a row's features has a scale (and a least) of its own;
    None: the whole row. `rotated`: keys, and the queries they meet, are first multiplied by a
    Hadamard matrix, which leaves their products alone and spreads what stands out (QuaRot, arXiv
    2404.00456).

    A row is bytes: the codes; the scales, float16; and for 4 bits the leasts, float16. Of 4-bit
    codes, feature i is the low half of byte i and feature i + d/2 the high one.
    """

    bits: int
    group: int | None = None
    rotated: bool = False

    @classmethod
    def parse(cls, text: str) -> KvFormat:
        """Read a format from its short form.

        >>> str(KvFormat.parse("kv4g32r"))
        'kv4g32r'
        """
        match = _TEXT.fullmatch(text)
        if match is None or (match["group"] and not _fits(int(match["group"]))):
            raise ConfigError(
                f"'{text}' is no format of a cache; write kv8 or kv4, then g and a group size of "
                "16, 32 or a larger power of two if rows are to have several scales, then r if "
                "keys are to be rotated: kv8, kv4g16r; or one for keys, one for values: kv8/kv4g32"
            )
        group = int(match["group"]) if match["group"] else None
        return cls(bits=int(match["bits"]), group=group, rotated=bool(match["rotated"]))

    def __str__(self) -> str:
        group = "" if self.group is None else f"g{self.group}"
        return f"kv{self.bits}{group}{'r' if self.rotated else ''}"

    def check(self, head_dim: int) -> None:
        """Refuse heads that cannot be stored like this.

        Raises:
            UnsupportedError: their size is no multiple of the group's, or of 32 for 4 bits.
        """
        unit = max(self.group or 8, 8 if self.bits == 8 else 32)
        if head_dim % unit:
            raise UnsupportedError(
                f"{self} needs heads of a multiple of {unit} features, and these have {head_dim}; "
                "use kv8"
            )

    @property
    def meets_codes(self) -> bool:
        """Whether keys are multiplied as integers, for which queries become 8-bit codes too.

        So are those that have one scale a row: kv8, kv8r.
        """
        return self.bits == 8 and self.group is None

    def group_size(self, head_dim: int) -> int:
        """Features that share a scale."""
        return min(self.group or head_dim, head_dim)

    def groups(self, head_dim: int) -> int:
        """Scales of a row."""
        return head_dim // self.group_size(head_dim)

    def code_bytes(self, head_dim: int) -> int:
        """Bytes of a row's codes."""
        return head_dim * self.bits // 8

    def row_bytes(self, head_dim: int) -> int:
        """Bytes of a row.

        >>> KvFormat.parse("kv8").row_bytes(64), KvFormat.parse("kv4g32r").row_bytes(64)
        (66, 40)
        """
        numbers = 1 if self.bits == 8 else 2
        return self.code_bytes(head_dim) + 2 * numbers * self.groups(head_dim)


def pair(kv: str) -> tuple[str, str]:
    """Return the formats of keys and of values.

    >>> pair("kv8/kv4g32"), pair("kv8"), pair("")
    (('kv8', 'kv4g32'), ('kv8', 'kv8'), ('', ''))
    """
    keys, slash, values = kv.partition("/")
    return (keys, values) if slash else (keys, keys)


def check_pair(kv: str) -> None:
    """Refuse a text that is no format, or no two formats.

    Raises:
        ConfigError: says what is wrong.
    """
    for text in pair(kv):
        KvFormat.parse(text)


def row_of(kv: str, head_dim: int) -> tuple[int, str]:
    """Return how many numbers a cache's row has, and their type, for a format or "" for float32.

    >>> row_of("", 64), row_of("kv8", 64)
    ((64, 'float32'), (66, 'uint8'))
    """
    if not kv:
        return head_dim, "float32"
    return KvFormat.parse(kv).row_bytes(head_dim), "uint8"


def _fits(group: int) -> bool:
    return group >= 16 and not group & (group - 1)
