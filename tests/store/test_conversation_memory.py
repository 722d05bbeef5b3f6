"""Conversations: every message is kept, recent ones verbatim, older ones as a document to select from."""

import time
from datetime import datetime

import numpy as np
import pytest
import torch

from shared_context import errors
from shared_context.errors import DocumentError

FACTS = [
    ("user", "My name is Ottilie and I repair accordions in a shed behind the fish market."),
    ("assistant", "Nice to meet you, Ottilie. How long have you been repairing accordions?"),
    ("user", "Since 1997. The first one belonged to my uncle Joost and smelled of tobacco."),
    ("assistant", "A good beginning. What do you use to tune the reeds?"),
    ("user", "A strobe tuner, a scratching tool and a lot of patience. I also need beeswax."),
    ("assistant", "Beeswax holds the reed plates in place, doesn't it?"),
]


@pytest.fixture
def talk(store):
    """A conversation of six messages, of which about the last two stay verbatim."""
    conversation = store.conversation("ottilie", recent_tokens=40)
    for role, content in FACTS:
        conversation.append(role, content)
    return conversation


def test_all_messages_are_kept_as_they_were(store):
    conversation = store.conversation("c")
    conversation.append("user", "  hello \r\n 👋", name="Ada", tags=["a", {"b": None}], score=1.5)
    conversation.append("assistant", "")
    assert conversation.messages() == [
        {"role": "user", "content": "  hello \r\n 👋", "name": "Ada", "tags": ["a", {"b": None}], "score": 1.5},
        {"role": "assistant", "content": ""},
    ]


def test_recent_messages_stay_verbatim_and_older_ones_are_compressed(talk, store):
    messages = [{"role": role, "content": content} for role, content in FACTS]
    assert talk.messages() == messages
    recent = talk.recent()
    assert recent == messages[-len(recent) :]
    assert 1 <= len(recent) < len(messages)
    assert sum(store.model.count_tokens(m["content"]) for m in recent) <= 40
    selection = talk.select("Who owned the first accordion?", budget=64)
    assert "Joost" in selection.text
    everything = talk.select(None, ratio=1).text
    older = "".join(f"{m['role']}: {m['content']}\n" for m in messages[: -len(recent)])
    assert everything.partition("] ")[2] == older.rstrip()


def test_nothing_is_compressed_while_all_is_recent(store):
    conversation = store.conversation("c", recent_tokens=10_000)
    assert not conversation.select("anything?")
    for role, content in FACTS:
        conversation.append(role, content)
    assert len(conversation.recent()) == len(FACTS)
    assert not conversation.select("anything?")


def test_the_last_message_stays_verbatim_however_long(store):
    conversation = store.conversation("c", recent_tokens=0)
    long = " ".join(f"word{number}" for number in range(100))
    conversation.append("user", long)
    assert len(conversation.recent()) == 1
    conversation.append("assistant", "I see.")
    assert conversation.recent() == [{"role": "assistant", "content": "I see."}]
    assert conversation.select("word?", budget=1000).text.endswith(f"] user: {long}")


def test_an_answer_comes_from_the_compressed_turns(talk, store):
    question = "What is the name of the person who repairs accordions?"
    selection = talk.select(question, budget=64)
    with_it, without = (store.model.nll(question, "Ottilie", context=context) for context in (selection, None))
    assert with_it < without


def test_conversations_are_no_documents(talk, store):
    store.add("The lamp is lit by Ada Quist.", id="ottilie")
    assert store.ids() == ["ottilie"]
    assert len(store) == 1
    assert [d.text for d in store] == ["The lamp is lit by Ada Quist."]
    assert store.select("Who repairs accordions?", budget=1000).text == "The lamp is lit by Ada Quist."
    assert {n.doc_id for n in store.retrieve("Who repairs accordions?", k=100)} == {"ottilie"}
    assert store.select(None, ratio=1).doc_ids == ["ottilie"]
    assert "lamp" not in talk.select("Who lights the lamp?", budget=1000).text
    store.delete("ottilie")
    assert talk.select("Who repairs accordions?")
    assert talk.messages()


def test_conversations_change_no_score_of_documents_or_of_each_other(filled, open_store):
    query = "Who lights the lamp with oil?"
    before = filled.retrieve(query, k=100)
    one = filled.conversation("one", recent_tokens=0)
    for role, content in FACTS:
        one.append(role, content)
    alone = one.select("Who is Joost?", budget=1000).nodes
    two = filled.conversation("two", recent_tokens=0)
    for _ in range(3):
        two.append("user", "Who lights the lamp with oil and who is Joost?")
    assert filled.retrieve(query, k=100) == before
    assert one.select("Who is Joost?", budget=1000).nodes == alone


def test_a_store_of_nothing_but_conversations_works(talk, store):
    assert store.stats()["conversations"] == 1
    assert store.stats()["documents"] == 0
    assert not store.select("Who repairs accordions?")
    assert store.retrieve("Who repairs accordions?") == []
    store.warm()
    assert list(store) == []


def test_options_of_a_selection_work_for_conversations(talk):
    assert talk.select("Who?", ratio=4).nodes[0].ratio == 4
    assert talk.select("Who?", search="split_and_search")
    assert talk.select("Who?", policy="last_token", budget=20).kv_entries <= 20
    with pytest.raises(errors.BudgetError):
        talk.select("Who?", budget=0)
    with pytest.raises(errors.QueryError):
        talk.select("")


def test_conversations_are_found_again_and_go_on(talk, store, open_store, path):
    messages, recent = talk.messages(), talk.recent()
    selected = talk.select("Who is Joost?", budget=64).text
    store.close()
    again = open_store(path)
    assert again.conversations() == ["ottilie"]
    conversation = again.conversation("ottilie", recent_tokens=40)
    assert (conversation.messages(), conversation.recent()) == (messages, recent)
    assert conversation.select("Who is Joost?", budget=64).text == selected
    conversation.append("user", "Yes, it does.")
    assert len(conversation.messages()) == len(messages) + 1


def test_conversations_go_with_a_copy_of_the_store(talk, store, open_store, tmp_path):
    store.persist(tmp_path / "copy")
    copy = open_store(tmp_path / "copy").conversation("ottilie", recent_tokens=40)
    assert copy.messages() == talk.messages()
    assert copy.select("Who is Joost?", budget=64).text == talk.select("Who is Joost?", budget=64).text


def test_clearing_forgets_one_conversation(talk, store):
    other = store.conversation("other", recent_tokens=0)
    other.append("user", "one")
    other.append("user", "two")
    talk.select(None, ratio=1).key_values()
    talk.clear()
    talk.clear()
    assert talk.messages() == talk.recent() == []
    assert not talk.select("Who is Joost?")
    assert store.stats()["kv_cache"]["disk"]["entries"] == 0
    assert store.conversations() == ["other"]
    assert len(other.messages()) == 2
    talk.append("user", "Hello again.")
    assert len(talk.messages()) == 1


@pytest.mark.parametrize(
    ("message", "match"),
    [
        ({"role": "user", "content": None}, "content is None"),
        ({"role": 1, "content": "x"}, "role is 1"),
        ({"role": "user", "content": "x", "extra": {1}}, "extra"),
        ({"role": "user", "content": "\ud800"}, "surrogate"),
    ],
)
def test_a_message_that_cannot_be_kept_is_refused_and_the_others_stay(talk, message, match):
    before = talk.messages()
    with pytest.raises(errors.DocumentError, match=match):
        talk.append(**message)
    assert talk.messages() == before


@pytest.mark.parametrize("id", ["", "  ", None, 5, "a\nb", "x" * 1000])
def test_an_id_that_names_nothing_is_refused(store, id):
    with pytest.raises(errors.DocumentError, match="conversation"):
        store.conversation(id)


def test_a_negative_number_of_recent_tokens_is_refused(store):
    with pytest.raises(errors.ConfigError, match="recent_tokens"):
        store.conversation("c", recent_tokens=-1)


def topics(count):
    return [f"Note {n}: the boat of the {n}th family was painted, and its sails were dried." for n in range(count)]


@pytest.fixture
def corrected(store):
    """A conversation in which an address is given, other things are said, and the address changes."""
    memory = store.conversation("moving", recent_tokens=0)
    said = ["My address is 12 Rope Street.", *topics(6), "We have moved, my address is 95 Quay Lane now.", *topics(3)]
    for text in said:
        memory.append("user", text)
    memory.append("assistant", "Noted.")
    return memory


def test_what_was_said_later_is_read_later_with_when_it_was_said(corrected, model):
    selection = corrected.select("What is my address?", budget=128)
    text = selection.text
    assert 0 <= text.index("Rope Street") < text.index("Quay Lane")
    context = selection.key_values()
    read = model.tokenizer.decode(context.token_ids[torch.cat(list(context.places)).argsort()])
    assert read.index("Rope Street") < read.index("Quay Lane")
    (node,) = [node for node in selection.nodes if "Quay" in node.text]
    assert (node.said["role"], node.said["message"]) == ("user", 7)
    assert abs(datetime.fromisoformat(node.said["time"]).timestamp() - time.time()) < 600
    assert node.said["time"][:16].replace("T", " ") in text


CORRECTED = [
    (
        "I live in Oslo with my sister.",
        "Since March I am in Bergen, in a flat of my own.",
        "Where do I live?",
        "Bergen",
    ),
    ("I work at Alder Shipping.", "I have a new job since last week, at Birch Foundry.", "Where do I work?", "Birch"),
    ("My car is a red Volvo.", "We sold the car and bought a blue Skoda.", "What car do I drive?", "Skoda"),
    ("The wifi code is 7781.", "New router, new wifi code: 9034.", "What is the wifi code?", "9034"),
]


def test_what_corrects_a_statement_is_shown_though_other_turns_are_nearer_to_the_question(open_store, embedder):
    talk = open_store(embedder=embedder).conversation("talk", recent_tokens=8)
    said = [first for first, *_ in CORRECTED] + topics(8) + [later for _, later, *_ in CORRECTED] + topics(8)
    for text in said:
        talk.append("user", text)
        talk.append("assistant", "With pleasure. There is much to say of it, and every household has its own opinion.")
    shown = {question: talk.select(question, budget=224).text for *_, question, _ in CORRECTED}
    assert [new for *_, question, new in CORRECTED if new not in shown[question]] == []


def test_a_message_that_is_forgotten_is_not_found_any_more(corrected, store, path):
    corrected.select("What is my address?", budget=256).key_values()
    before = len(corrected.messages())
    corrected.forget(0)
    assert len(corrected.messages()) == before - 1
    assert "Rope Street" not in corrected.select("What is my address?", budget=4096).text
    assert "Quay Lane" in corrected.select("What is my address?", budget=4096).text
    corrected.forget(np.int64(-2), np.int64(2))
    assert corrected.messages()[-1]["content"] == topics(2)[1]


def test_a_message_is_edited_in_its_place(corrected):
    corrected.edit(np.int64(7), "We have moved, my address is 3 Mill Road now.", note="corrected")
    message = corrected.messages()[7]
    assert message == {"role": "user", "content": "We have moved, my address is 3 Mill Road now.", "note": "corrected"}
    text = corrected.select("What is my address?", budget=4096).text
    assert "Mill Road" in text and "Quay Lane" not in text


def test_the_last_answer_is_taken_back_to_be_given_anew(corrected):
    count = len(corrected.messages())
    assert corrected.regenerate()["content"] == topics(3)[2]
    assert len(corrected.messages()) == count - 1
    assert corrected.regenerate()["content"] == topics(3)[2]
    assert len(corrected.messages()) == count - 1


def test_all_of_a_conversation_may_be_forgotten_message_by_message(corrected, store):
    corrected.forget(0, len(corrected.messages()))
    assert corrected.messages() == [] and store.conversations() == []
    assert not corrected.select("What is my address?")
    assert corrected.regenerate() is None


@pytest.mark.parametrize("position, count", [(40, 1), (-40, 1), (10, 5), ("first", 1)])
def test_messages_that_are_not_there_cannot_be_forgotten(corrected, position, count):
    before = corrected.messages()
    with pytest.raises(DocumentError, match="'moving'"):
        corrected.forget(position, count)
    with pytest.raises(DocumentError):
        corrected.edit(99, "other words")
    assert corrected.messages() == before
