"""Text from tokens that arrive one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"  # what decoders write for bytes that are not, or not yet, a character
_CONTEXT = 8


class TextStream:
    """Turns tokens into pieces of text whose sum is the text of all tokens.

    A token can end in the middle of a character, and decoders drop a space at the beginning of what
    they are given. So a window of tokens is decoded with each new one, beginning with some whose
    text is out already, and what is new at its end is given out, less bytes that may still become
    a character.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int] = ()) -> None:
        """`decode` gives the text of tokens; `prompt` are the tokens that the text continues."""
        self._decode = decode
        self._window = list(prompt[-_CONTEXT:])
        self._shown = decode(self._window) if self._window else ""
        self._complete = len(self._window)

    def push(self, token: int) -> str:
        """Take the next token and return the text that is certain now, often of an earlier one."""
        self._window.append(token)
        text = self._decode(self._window)
        # Sentencepiece decoders give one replacement for each byte of a run as long as any of it is
        # incomplete, even for characters that were complete before.
        if not text.startswith(self._shown):
            return ""
        certain = text.rstrip(_REPLACEMENT)
        piece = certain[len(self._shown) :]
        if not piece:
            return ""
        self._shown = certain
        if certain == text:
            # All is out; the newest tokens are context enough for the next.
            self._window = self._window[self._complete :]
            self._shown = self._decode(self._window)
            self._complete = len(self._window)
        return piece

    def finish(self, *, cut: bool) -> str:
        """Return the text that is left; `cut` leaves out a character that was cut in two."""
        text = self._decode(self._window)
        if not text.startswith(self._shown):
            # A run of bytes that never became characters: what is new are its last tokens.
            text, self._shown = self._decode(self._window[self._complete :]), ""
        rest = text[len(self._shown) :]
        return rest.rstrip(_REPLACEMENT) if cut else rest
