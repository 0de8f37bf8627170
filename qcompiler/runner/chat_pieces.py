"""A chat template as the texts that stand between messages.

The runner has no Jinja. What a template writes around a user's message is found by rendering it
around a mark, and what it writes between messages in the same way; conversations of other lengths
and contents then show whether the pieces are all there is to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.core.errors import UsageError
from qcompiler.runtime.chat import ChatTemplate, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPieces:
    """What is written around messages.

    A conversation is `opening`, or `before_system`, the system's message and `after_system`; the
    user's message; for every earlier answer `before_answer`, the answer, `after_answer` and the
    user's next message; and `ending`, after which the model answers. `trimmed` names the roles
    whose messages lose the white space around them. Without `system` or `turns`, the template has
    no word for a system's message, or does more with a longer conversation than this.
    """

    opening: str
    ending: str
    before_system: str = ""
    after_system: str = ""
    before_answer: str = ""
    after_answer: str = ""
    trimmed: frozenset[str] = frozenset()
    system: bool = False
    turns: bool = False

    def render(self, messages: Sequence[Message]) -> str:
        """Return what the runner makes of a conversation."""
        text = ""
        for place, message in enumerate(messages):
            role, content = message["role"], message["content"]
            if role in self.trimmed:
                content = content.strip()
            if role == "system":
                text += self.before_system + content + self.after_system
            elif role == "assistant":
                text += self.before_answer + content + self.after_answer
            else:
                text += (self.opening if place == 0 else "") + content
        return text + self.ending


class NotPieces(Exception):
    """A template is more than pieces; the message says in what."""


_MARKS = {"system": "Kmarksystemk", "user": "Kmarkuserk", "assistant": "Kmarkanswerk"}
_CONTENTS = ("  outer space \n", "two\n\nlines", "3 < 4 & 'x' {{ y }}", "é 😀")


def chat_pieces(template: ChatTemplate) -> ChatPieces:
    """Take a template apart.

    Raises:
        NotPieces: not even a single message of the user's stays as it is.
    """
    user = _said("user")
    opening, ending = _around(template, [user], ["user"])
    found = ChatPieces(opening=opening, ending=ending, trimmed=_trimmed(template, "user"))
    _check(template, found, ["user"])
    return _with_turns(template, _with_system(template, found))


def _with_system(template: ChatTemplate, pieces: ChatPieces) -> ChatPieces:
    try:
        before, after, ending = _around(
            template, [_said("system"), _said("user")], ["system", "user"]
        )
        if ending != pieces.ending:
            return pieces
        return _checked(
            template,
            pieces,
            ["system", "user"],
            before_system=before,
            after_system=after,
            trimmed=pieces.trimmed | _trimmed(template, "system"),
            system=True,
        )
    except (NotPieces, UsageError):
        return pieces


def _with_turns(template: ChatTemplate, pieces: ChatPieces) -> ChatPieces:
    roles = ["user", "assistant", "user"]
    try:
        opening, before, after, ending = _around(template, [_said(role) for role in roles], roles)
        if (opening, ending) != (pieces.opening, pieces.ending):
            return pieces
        changed = _checked(
            template,
            pieces,
            ["user", "assistant", "user", "assistant", "user"],
            before_answer=before,
            after_answer=after,
            trimmed=pieces.trimmed | _trimmed(template, "assistant"),
            turns=True,
        )
        if changed.system:
            _check(template, changed, ["system", "user", "assistant", "user"])
        return changed
    except (NotPieces, UsageError):
        return pieces


def _checked(
    template: ChatTemplate, pieces: ChatPieces, roles: list[str], **changes: object
) -> ChatPieces:
    """Return pieces with changes that proved true."""
    changed = ChatPieces(**{name: getattr(pieces, name) for name in _NAMES} | changes)
    _check(template, changed, roles)
    return changed


_NAMES = tuple(ChatPieces.__dataclass_fields__)


def _said(role: str, content: str | None = None) -> dict[str, str]:
    return {"role": role, "content": _MARKS[role] if content is None else content}


def _around(template: ChatTemplate, messages: list[dict[str, str]], roles: list[str]) -> list[str]:
    """Return what stands before, between and behind messages that are marks."""
    parts: list[str] = []
    rest = template.render(messages)
    for role in roles:
        part, mark, rest = rest.partition(_MARKS[role])
        if not mark:
            raise NotPieces(f"it leaves out what the {role} says")
        parts.append(part)
    if any(mark in part for mark in _MARKS.values() for part in [*parts, rest]):
        raise NotPieces("it repeats what was said")
    return [*parts, rest]


def _trimmed(template: ChatTemplate, role: str) -> frozenset[str]:
    """Say whether white space around a message of a role is dropped: {role} or nothing."""
    before = {"user": [], "system": [], "assistant": [_said("user")]}[role]
    behind = [] if role == "user" else [_said("user", "next")]
    mark = _MARKS[role]
    text = template.render([*before, _said(role, f" \n{mark}\t "), *behind])
    start = text.find(mark)
    if start < 0:
        raise NotPieces(f"it leaves out what the {role} says")
    kept = text[max(0, start - 2) : start] == " \n" and text[start + len(mark) :].startswith("\t ")
    return frozenset() if kept else frozenset({role})


def _check(template: ChatTemplate, pieces: ChatPieces, roles: list[str]) -> None:
    """Render conversations both ways.

    Raises:
        NotPieces: they differ.
    """
    for shift in range(len(_CONTENTS)):
        messages = [
            _said(role, _CONTENTS[(place + shift) % len(_CONTENTS)])
            for place, role in enumerate(roles)
        ]
        if pieces.render(messages) != template.render(messages):
            raise NotPieces("it does more than to write something around messages")
