"""Chat templates: messages in, the text a model was trained to read out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from tokenizers import Tokenizer

from qcompiler.core.artifact import ModelFacts
from qcompiler.core.errors import ArtifactError, UsageError

Message = Mapping[str, str]
"""A message: its role ("system", "user" or "assistant") and its content."""


def model_template(facts: ModelFacts, tokenizer: Tokenizer) -> ChatTemplate:
    """Return a model's chat template, with the special tokens that it may name."""
    known = {"bos_token": facts.begin_token, "eos_token": next(iter(facts.end_tokens), None)}
    texts = {name: tokenizer.id_to_token(i) for name, i in known.items() if i is not None}
    named = {name: text for name, text in texts.items() if text is not None}
    return ChatTemplate(facts.chat_template or "", named | facts.special_tokens)


class ChatTemplate:
    """A Jinja template as Hugging Face writes them, compiled in a sandbox.

    The template comes with the model, so with a stranger's file.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile a template; ArtifactError when it is not one."""
        # Only here: a model without a template, or a raw prompt, does without Jinja.
        import jinja2
        from jinja2 import nodes
        from jinja2.ext import Extension
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """{% generation %} marks for training what an assistant said; here it is plain."""

            tags = {"generation"}  # noqa: RUF012 (as the base class declares it)

            def parse(self, parser: Parser) -> list[nodes.Node]:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        def raise_exception(message: str) -> None:
            raise jinja2.TemplateError(message)

        def tojson(value: object, ensure_ascii: bool = False, **options: Any) -> str:
            # Jinja's own filter writes < and > as HTML wants them, not as models do.
            return json.dumps(value, ensure_ascii=ensure_ascii, **options)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ArtifactError(
                f"the model's chat template cannot be read ({error}); use a raw prompt"
            ) from None

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text of a conversation up to where the assistant's answer begins.

        Raises UsageError for what is no message, and when the template refuses the conversation.
        """
        for message in messages:
            if not isinstance(message, Mapping) or not all(
                isinstance(message.get(key), str) for key in ("role", "content")
            ):
                raise UsageError(
                    f"{message!r} is no message; write "
                    '{"role": "user", "content": "…"}, the role being user, assistant or system'
                )
        if not messages:
            raise UsageError("there are no messages; give at least one of the user's")
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except Exception as error:  # a template can divide by zero as well as any program
            raise UsageError(
                f"the model's chat template refuses these messages: {error}; "
                "change them, or use a raw prompt"
            ) from None
