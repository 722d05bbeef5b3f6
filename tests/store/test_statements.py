"""Of what was said of one thing in a conversation the newest is shown, and the first where that is asked for."""

import pytest

from shared_context.store.statements import as_json

UNRELATED = [
    "Tell me something about {}, please, I would like to know more.",
    "What do I need to know about {}?",
    "I was talking with a friend about {} yesterday, it took the whole evening.",
]
TOPICS = """the winter ferry, old maps, oak furniture, bread ovens, bird watching, chess openings, garden ponds,
the brass band, a sea novel, star charts, beekeeping, woollen socks, tide tables, rain barrels"""
ANSWER = "There is much to say about {}: people here have cared for it for generations, each in a way of their own."

CASES = {
    "What is my phone number?": (
        ["My phone number is 555-0142.", "I changed my phone, the number is 555-0199 now.",
         "Actually it's 555-0177 now, the last one was wrong."],
        "What was my first phone number?",
    ),
    "What is the project's budget?": (
        ["The project's budget is 4,000 crowns.", "The board raised the budget to 6,500 crowns.",
         "Bad news, finance cut it back: 5,200 crowns is all that we have."],
        "What was the project's budget originally?",
    ),
    "When does my flight leave?": (
        ["My flight leaves at 07:15 on Friday.", "The airline wrote, my flight now leaves at 09:40.",
         "Delayed once more! Departure is at 13:05."],
        "When was my flight supposed to leave at first?",
    ),
    "How much do I weigh?": (
        ["I weigh 84 kilos and would like to lose some.", "Weighed myself this morning: 77.5, can you believe it?"],
        "How much did I weigh before?",
    ),
    "Welche Telefonnummer habe ich?": (
        ["Meine Telefonnummer ist 0431 55201.", "Ich habe eine neue Nummer: 0431 77890."],
        "Welche Telefonnummer hatte ich zuerst?",
    ),
}  # fmt: skip


def told(store, statements):
    """A conversation in which each statement is followed by four exchanges about something else."""
    all_of_it = store.conversation("talk", recent_tokens=10_000)
    topics = iter(TOPICS.replace("\n", " ").split(", "))
    for said in statements:
        all_of_it.append("user", said)
        all_of_it.append("assistant", "Noted.")
        for number, topic in zip(range(4), topics, strict=False):
            all_of_it.append("user", UNRELATED[number % 3].format(topic))
            all_of_it.append("assistant", ANSWER.format(topic))
    talk = store.conversation("talk", recent_tokens=0)
    talk.append("assistant", "Anything else?")
    talk.append("assistant", "I am listening.")
    return talk


@pytest.mark.parametrize("question", CASES)
def test_the_newest_statement_is_shown_by_a_small_budget_and_the_first_where_it_is_asked_for(
    open_store, embedder, question
):
    statements, first_asked = CASES[question]
    talk = told(open_store(embedder=embedder), statements)
    for asked, statement in (question, statements[-1]), (first_asked, statements[0]):
        shown = "".join(node.text for node in talk.select(asked, budget=64).nodes)
        assert statement[-12:].rstrip(".") in shown, asked


def test_a_statement_that_is_taken_back_to_what_it_was_is_shown_where_it_was_said_last(open_store, embedder):
    back = ["We meet on Tuesday.", "They moved it, we meet on Thursday.", "We meet on Tuesday."]
    talk = told(open_store(embedder=embedder), back)
    selection = talk.select("When do we meet?", budget=96)
    newest = max((node for node in selection.nodes if "Tuesday" in node.text), key=lambda node: node.start)
    assert all(node.start < newest.start for node in selection.nodes if "Thursday" in node.text)


def test_a_message_that_is_edited_is_found_by_what_it_says_now(open_store, embedder):
    talk = told(open_store(embedder=embedder), CASES["What is my phone number?"][0])
    at = next(n for n, message in enumerate(talk.messages()) if "0177" in message["content"])
    talk.edit(at, "Our cellar is full of water.")
    assert "0199" in talk.select("What is my phone number?", budget=64).text
    assert "full of water" in talk.select("What is the cellar full of?", budget=64).text
    assert all(set(message) == {"role", "content"} for message in talk.messages())


@pytest.mark.parametrize(
    ("content", "stated"),
    [
        ("What is my number?", []),
        ("tell me about tides", []),
        ("Is it on Monday? I think so.", ["I think so."]),
        ("When we moved, my number changed.", ["When we moved, my number changed."]),
        ("  One thing.  And another one.\n", ["One thing.  And another one."]),
        ("It is 77.5, can you believe it?", ["It is 77.5, can you believe it?"]),
        ("", []),
    ],
)
def test_statements_are_what_does_not_ask(embedder, content, stated):
    assert [content[start:end] for start, end, _ in as_json(content, embedder)] == stated
