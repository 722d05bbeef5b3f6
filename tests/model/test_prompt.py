"""Prompts: one prefix for every conversation, whatever the model's chat template."""

import copy
from datetime import date

import pytest

from shared_context.model.prompt import PromptFormat

TEMPLATES = {
    "none": None,
    "system role": "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>{% endfor %}<assistant>",
    "no system role": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    ),
}
CONVERSATIONS = {
    "question": [{"role": "user", "content": "where is the lamp"}],
    "turns": [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "good day"},
        {"role": "user", "content": "where is the lamp"},
    ],
}


@pytest.fixture(params=TEMPLATES)
def chat_tokenizer(request, tokenizer):
    chosen = copy.deepcopy(tokenizer)
    chosen.chat_template = TEMPLATES[request.param]
    return chosen


def test_all_conversations_share_the_prefix_and_keep_every_word(chat_tokenizer):
    prompts = PromptFormat(chat_tokenizer, "be brief")
    for messages in CONVERSATIONS.values():
        prompt = prompts.render(messages, with_context=True)
        assert prompt.prefix == prompts.prefix
        text = chat_tokenizer.decode([*prompt.prefix, *prompt.suffix])
        words = ["be brief", "Context:", *(m["content"] for m in messages)]
        positions = [text.index(word) for word in words]
        assert positions == sorted(positions)


def test_without_context_nothing_speaks_of_one(chat_tokenizer):
    prompt = PromptFormat(chat_tokenizer, "be brief").render(CONVERSATIONS["question"], with_context=False)
    assert prompt.prefix == ()
    assert "Context" not in chat_tokenizer.decode(prompt.suffix)


def test_a_system_message_replaces_the_default_one(chat_tokenizer):
    messages = [{"role": "system", "content": "speak in rhyme"}, *CONVERSATIONS["question"]]
    prompt = PromptFormat(chat_tokenizer, "be brief").render(messages, with_context=True)
    text = chat_tokenizer.decode([*prompt.prefix, *prompt.suffix])
    assert "speak in rhyme" in text
    assert "be brief" not in text


@pytest.mark.parametrize("today", ["{{ strftime_now('%d %b %Y') }}", "{{ date_string | default('no date') }}"])
def test_chunks_are_encoded_behind_the_same_words_every_day(tokenizer, today):
    chosen = copy.deepcopy(tokenizer)
    chosen.chat_template = f"Today: {today}\n{TEMPLATES['system role']}"
    prompts = PromptFormat(chosen, "be brief")
    assert "26 Jul 2024" in chosen.decode(prompts.prefix)
    answered = chosen.decode(prompts.render(CONVERSATIONS["question"], with_context=True).prefix)
    assert (f"{date.today():%d %b %Y}" if "strftime" in today else "no date") in answered
