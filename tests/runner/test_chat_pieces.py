"""Chat templates taken apart, and put together to the same texts."""

from __future__ import annotations

import pytest

from qcompiler.runner.chat_pieces import NotPieces, chat_pieces
from qcompiler.runtime.chat import ChatTemplate

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou help."
    "<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|h|>{{ m.role }}<|/h|>\n\n{{ m.content | trim }}<|eot|>"
    "{% endfor %}<|h|>assistant<|/h|>\n\n"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}</turn>\n{% endfor %}<turn>model\n"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content.strip() }} "
    "[/INST]{% elif m.role == 'system' %}<<SYS>>{{ m.content }}<</SYS>>{% else %}"
    " {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content if loop.last or m.role != 'assistant' else "
    "m.content | upper }}{% endfor %}[assistant]<think>"
)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("source", "trimmed", "system"),
    [
        (CHATML, set(), True),
        (LLAMA3, {"user", "assistant", "system"}, True),
        (GEMMA, {"user", "assistant"}, False),
        (LLAMA2, {"user"}, True),
    ],
)
def test_conversations_are_the_same(source: str, trimmed: set[str], system: bool) -> None:
    template = ChatTemplate(source, TOKENS)
    pieces = chat_pieces(template)
    assert pieces.turns
    assert (pieces.trimmed, pieces.system) == (trimmed, system)
    talk = [("user", " a\n"), ("assistant", "b "), ("user", "c"), ("assistant", ""), ("user", "d")]
    messages = [{"role": role, "content": content} for role, content in talk]
    for count in (1, 3, 5):
        assert pieces.render(messages[:count]) == template.render(messages[:count])
        if system:
            longer = [{"role": "system", "content": " s "}, *messages[:count]]
            assert pieces.render(longer) == template.render(longer)


def test_a_template_that_changes_earlier_answers_takes_one_message() -> None:
    template = ChatTemplate(THINKING, {})
    pieces = chat_pieces(template)
    assert not pieces.turns
    message = [{"role": "user", "content": "why?"}]
    assert pieces.render(message) == template.render(message) == "[user]why?[assistant]<think>"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("hello", "it leaves out what the user says"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "it repeats what was said"),
        ("{{ messages[0].content[:40] | replace(' ', '_') }}!", "it does more than to write"),
    ],
)
def test_what_is_more_than_pieces(source: str, why: str) -> None:
    with pytest.raises(NotPieces, match=why):
        chat_pieces(ChatTemplate(source, {}))
