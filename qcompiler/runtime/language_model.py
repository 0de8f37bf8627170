"""A compiled language model: prompts in, text or logits out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from types import TracebackType

import numpy as np
from tokenizers import Tokenizer

from qcompiler.core.artifact import Manifest
from qcompiler.core.errors import UsageError
from qcompiler.runtime.chat import ChatTemplate, Message, model_template
from qcompiler.runtime.executable import Executable
from qcompiler.runtime.generation import Generation
from qcompiler.runtime.sampling import Sampler, SamplingOptions
from qcompiler.runtime.session import Session
from qcompiler.runtime.text_stream import TextStream


class LanguageModel:
    """A causal language model that `load` returned.

    Calls do not see one another: each has a sequence of its own. A `with` statement, or `close`,
    frees the weights.
    """

    def __init__(
        self, manifest: Manifest, executable: Executable, tokenizer: Tokenizer | None
    ) -> None:
        self.manifest = manifest
        self._executable = executable
        self._tokenizer = tokenizer

    def __repr__(self) -> str:
        return f"<LanguageModel {self.name} for {self.manifest.target.name}>"

    def __enter__(self) -> LanguageModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights; the model cannot be used any more."""
        self._executable.close()

    @property
    def name(self) -> str:
        return self.manifest.model.name

    @property
    def vocab_size(self) -> int:
        return self.manifest.model.vocab_size

    @property
    def max_context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.manifest.model.max_context

    @property
    def threads(self) -> int:
        return self._executable.workers.count

    @property
    def executable(self) -> Executable:
        """The machine code, for whoever measures it."""
        return self._executable

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a raw text, with the token that texts begin with if there is one."""
        ids = self._tokens(text, add_special_tokens=True)
        begin = self.manifest.model.begin_token
        return ids if begin is None or ids[:1] == [begin] else [begin, *ids]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without the special ones."""
        text: str = self._checked_tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def new_session(self) -> Session:
        """Return an empty sequence, to be read and continued token by token."""
        return Session(self._executable, self.manifest.model)

    def logits(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the logits after each of some tokens, [len(tokens), vocab] float32."""
        return self.new_session().score(tokens)

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        raw: bool = False,
    ) -> Generation:
        """Answer a prompt, or a conversation; return an iterator over pieces of the answer.

        A text is put in the model's chat template as the user's message, unless `raw` says to
        continue it as it is, or the model has no template. Options are those of `SamplingOptions`.
        The returned iterator also has the counts, times and the reason why it ended.

        Raises UsageError for options out of range, messages that the template refuses and a prompt
        that does not fit the context.
        """
        options = SamplingOptions(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        if type(max_tokens) is not int or max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}; give a whole number from 1")
        ids = self._prompt_tokens(prompt, raw=raw)
        if not ids:
            raise UsageError("the prompt is empty; write something")
        if len(ids) > self.max_context:
            raise UsageError(
                f"the prompt has {len(ids)} tokens, and the context of {self.name} holds "
                f"{self.max_context}; shorten it"
            )
        return Generation(
            self.new_session(),
            ids,
            Sampler(options, ids),
            TextStream(self.decode, ids),
            frozenset(self.manifest.model.end_tokens),
            max_tokens,
        )

    def _prompt_tokens(self, prompt: str | Sequence[Message], *, raw: bool) -> list[int]:
        """Return the tokens of a prompt; ends with what makes the model answer."""
        if not isinstance(prompt, str | Sequence):
            raise UsageError(f"the prompt is {prompt!r}; give a text or a list of messages")
        if isinstance(prompt, str):
            if raw or self.manifest.model.chat_template is None:
                return self.encode(prompt)
            prompt = [{"role": "user", "content": prompt}]
        elif raw or self.manifest.model.chat_template is None:
            reason = "raw is set" if raw else f"{self.name} has no chat template"
            raise UsageError(
                f"messages need a chat template, and {reason}; give the prompt as text"
            )
        text = self._template.render(prompt)
        # The template has written all special tokens itself.
        return self._tokens(text, add_special_tokens=False)

    def _tokens(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:
            # What Python makes of bytes from a command line that are no UTF-8.
            raise UsageError("the text is not valid Unicode; write it in UTF-8") from None
        tokenizer = self._checked_tokenizer
        ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    @cached_property
    def _template(self) -> ChatTemplate:
        return model_template(self.manifest.model, self._checked_tokenizer)

    @property
    def _checked_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise UsageError(
                f"{self.name} was compiled without a tokenizer, so it takes tokens, not text: "
                "use logits() or new_session()"
            )
        return self._tokenizer
