"""What a long message asks is found by itself, wherever in it that stands."""

import pytest

from shared_context.errors import QueryError
from shared_context.store.query_parts import BESIDE, MOST_PARTS, PART_TOKENS, QueryPart, parts

LETTER = (
    "Dear all, the parcel came on Thursday and the children were delighted with the kite. We flew it on the dunes "
    "until the string broke. Grandmother has planted beans along the fence, and the neighbour lent her his watering "
    "can. On Sunday the choir sang in the market hall, where it was so full that many stood. The cat has kittens. "
)
QUESTIONS = {
    "What does a ticket to Holm cost?": "38 crowns",
    "Who is the cook of the inn?": "Ilse Marr",
    "When was the lens of the lamp ground?": "1874",
}


def words(text):
    return len(text.split())


def test_a_short_query_is_one_part():
    assert parts("I came by boat. Where is the ferry?", words) == [QueryPart("I came by boat. Where is the ferry?")]


@pytest.mark.parametrize("message", ["{q} {l}", "{l}\n\n{q}", "{l}{q} {l}", "{l}Now my question: {q}", "{l}\n{q}\n{l}"])
def test_a_question_is_a_part_wherever_it_stands(message):
    question = "What does a ticket to Holm cost?"
    found = parts(message.format(q=question, l=LETTER), words)
    assert [part.text for part in found if part.weight == 1] == [question]
    assert {part.weight for part in found if part.text != question} == {BESIDE}


@pytest.mark.parametrize(
    "asked", ["Tell me what a ticket costs.", "please explain how it is lit", "Was kostet das Boot"]
)
def test_a_question_needs_no_mark(asked):
    assert [part.text for part in parts(f"{LETTER}\n{asked}\n", words) if part.weight == 1] == [asked]


@pytest.mark.parametrize(
    "asked", ["切符はいくらですか?", "切符はいくらですか。", "切符の値段を教えてください。", "船票多少钱?"]
)
@pytest.mark.parametrize("message", ["{l}{q}", "{q}{l}", "{l}{q}{l}"])
def test_a_question_is_known_where_no_spaces_are_written(asked, message):
    letter = (
        "木曜日に小包が届いて子供は大喜びでした!凧は砂丘で揚げました.版本.NETは3.5です.日曜日には合唱団が歌いました!"
    )
    found = parts(message.format(q=asked, l=letter), len)
    assert [part.text for part in found if part.weight == 1] == [asked]


def test_a_question_that_refers_to_the_sentence_before_brings_it_along():
    found = parts(f"{LETTER}My bicycle has a broken chain. Who can mend it?", words)
    asked = [part.text for part in found if part.weight == 1]
    assert asked == ["Who can mend it?", "My bicycle has a broken chain. Who can mend it?"]


def test_without_a_question_the_last_part_counts_most():
    found = parts(f"{LETTER}{LETTER}The price of a ticket to Holm.", words)
    assert max(found, key=lambda part: part.weight).text.endswith("The price of a ticket to Holm.")


def test_of_a_conversation_the_last_turn_asks():
    talk = f"user: Where is the inn?\nassistant: Behind the hall. {LETTER}\nuser: And who cooks there?"
    assert [part.text for part in parts(talk, words) if part.weight == 1][:1] == ["And who cooks there?"]
    assert all("Where is the inn" not in part.text for part in parts(talk, words) if part.weight == 1)


MAIL = (
    "> On Tue, 4 Mar 2031 at 18:20, Lena Ostrov wrote:\n>> did you get the pictures? What do you think of the roof?\n"
    "> I got them. Who has the key of the cellar?\n> When does the train arrive on Saturday?\n"
)
CHAT = (
    "[10:03] Jon: morning! who takes the early boat?\n[10:05] Sepp: I can. did anybody see my gloves?\n"
    "04.05.31, 10:06 - Mira Lund: what's for lunch anyway?\n"
)
LOG = "2031-05-02T10:11:01Z WARN slow: select * from tides where port = ?\n2031-05-02 10:12:44 who am i?\n" * 3


@pytest.mark.parametrize("others", [MAIL, CHAT, LOG])
@pytest.mark.parametrize("message", ["{q}\n{o}", "{o}\n{q}", "{o}{q}\n{o}"])
def test_what_others_asked_is_not_asked(others, message):
    found = parts(message.format(q="What does a ticket to Holm cost?", o=others * 2), words)
    assert [part.text for part in found if part.weight == 1] == ["What does a ticket to Holm cost?"]


ADVERTS = [
    "SPRING SALE! Tired of an old stove? Why wait? Up to 60% off, click here: https://stoves.example/s Who says that "
    "heat has to be dear? What are you waiting for? Unsubscribe: https://stoves.example/u",
    "This e-mail is confidential. If you are not the intended recipient, notify the sender and delete it. Did you get "
    "it by mistake? Tell us at once. Please think of the forest before printing this e-mail.",
    "--\nMara Quell | Head of Sales\nTel +49 471 555 0192\nNeed a quote? How can we help you?",
    "Diese Nachricht ist vertraulich. Haben Sie sie irrtümlich erhalten? Wer nicht der richtige Empfänger ist, löscht "
    "sie. Brauchen Sie ein neues Boot? Jetzt kaufen, nur diese Woche!",
]


@pytest.mark.parametrize("advert", ADVERTS)
@pytest.mark.parametrize("message", ["{a}\n\n{q}", "{a}\n{q}\n\n{l}", "{q}\n\n{a}", "{a}\n\n{l}{q}\n\n{a}"])
def test_what_adverts_and_signatures_ask_is_not_asked(advert, message):
    asked = "What does a ticket to Holm cost?"
    found = parts(message.format(q=asked, a=advert, l=LETTER), lambda text: 2 * words(text))
    assert [part.text for part in found if part.weight == 1] == [asked]
    assert not any("example" in part.text or "recipient" in part.text for part in found)


def test_a_question_about_an_advert_is_asked():
    for asked in "How do I unsubscribe from the newsletter?", "Who wrote that it is confidential?":
        assert asked in [part.text for part in parts(f"{LETTER}{asked}", words) if part.weight == 1]
    assert {"Why wait?"} <= {part.text for part in parts(ADVERTS[0] * 2, words) if part.weight == 1}


def test_tags_of_a_prompt_part_what_stands_between_them():
    prompt = f"<history>{LETTER}So much for that</history><question>What does a ticket to Holm cost?</question>"
    found = [part.text for part in parts(prompt, words) if part.weight == 1]
    assert found == ["What does a ticket to Holm cost?"]
    assert parts("<question></question>" * 50, len)


def test_what_is_quoted_asks_where_nothing_else_does():
    found = parts(MAIL * 2, words)
    assert {"> When does the train arrive on Saturday?"} <= {part.text for part in found if part.weight == 1}


@pytest.mark.parametrize(("user", "model"), [("**User:**", "**Assistant:**"), ("Q:", "A:"), ("Frage:", "Antwort:")])
def test_of_a_conversation_in_other_marks_the_last_turn_asks(user, model):
    talk = f"{user} Where is the inn?\n{model} Behind the hall. {LETTER}\n{user} And who cooks?"
    assert [part.text for part in parts(talk, words) if part.weight == 1] == ["And who cooks?"]


@pytest.mark.parametrize(
    "text", ["word " * 5000, "What is it? " * 5000, "x" * 20_000, "為什麼。" * 3000, "...\n" * 500]
)
def test_parts_are_few_and_short_whatever_the_message(text):
    found = parts(text, len)
    assert 1 <= len(found) <= MOST_PARTS
    assert all(part.text.strip() and len(part.text) <= PART_TOKENS + 1 for part in found)


@pytest.mark.parametrize("message", ["{l}{l}\n\n{q}", "{q} {l}{l}", "{l}{q} {l}"])
def test_the_answer_is_shown_behind_a_letter_too(hybrid, message):
    for question, answer in QUESTIONS.items():
        text = message.format(q=question, l=LETTER)
        assert answer in hybrid.select(text, budget=64).text
        assert hybrid.retrieve(text, 1, prefilter=1)[0].doc_id == hybrid.retrieve(question, 1)[0].doc_id


@pytest.mark.parametrize("advert", ADVERTS)
def test_the_answer_is_shown_behind_adverts_too(hybrid, advert):
    for question, answer in QUESTIONS.items():
        behind, alone = (hybrid.select(text, budget=64) for text in (f"{advert}\n\n{advert}\n\n{question}\n", question))
        assert answer in behind.text
        assert [node.score for node in behind.nodes] == pytest.approx([node.score for node in alone.nodes])
        assert behind.text == alone.text


@pytest.mark.parametrize("query", ["the of and to", "\U0001f600", "?", "...", "the " * 100, "\U0001f600 " * 100])
def test_a_query_that_says_nothing_is_answered_all_the_same(hybrid, query):
    assert 0 < hybrid.select(query, budget=48).kv_entries <= 48


def test_a_query_as_long_as_a_book_is_refused_with_the_number(hybrid, model):
    text = "When does the ferry leave? " * 16_000
    with pytest.raises(QueryError, match=f"{model.count_tokens(text)} tokens"):
        hybrid.select(text)
    with pytest.raises(QueryError, match="27,000,000 characters"):
        hybrid.select("When does the ferry leave? " * 1_000_000)


def test_a_query_may_be_rewritten_before_it_is_searched_for(open_store, documents):
    asked = []

    def rewrite(query):
        asked.append(query)
        return ["Who is the cook of the inn?", "What does a ticket to Holm cost?"]

    store = open_store(rewrite=rewrite)
    store.add(documents)
    selection = store.select("You know what I mean.", budget=96)
    assert "Ilse Marr" in selection.text and "38 crowns" in selection.text
    assert selection.query == "You know what I mean." == asked[0]


@pytest.mark.parametrize("wrong", [None, "", [], ["fine", 3], " "])
def test_a_rewriting_that_gives_no_text_is_named(open_store, documents, wrong):
    store = open_store(rewrite=lambda query: wrong)
    store.add(documents)
    with pytest.raises(QueryError, match="rewrite"):
        store.select("Where is the ferry?")
