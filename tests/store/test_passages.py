"""Passages as text: they begin and end at sentences, lines and rows, and know their heading."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_context import Passage
from shared_context.store.passages import REACH, heading_of, whole, word_end, word_start

PROSE = (
    "Dr. Osei runs the mill, i.e. both wheels. On 3. May it stopped at 06:40 for 149 euros of repairs! "
    'Was it worth it? "Certainly." So says Mrs. Lund (of No. 4).\n\nThe second paragraph is about flour. It is fine.'
)
SENTENCES = [
    "Dr. Osei runs the mill, i.e. both wheels.",
    "On 3. May it stopped at 06:40 for 149 euros of repairs!",
    "Was it worth it?",
    '"Certainly."',
    "So says Mrs. Lund (of No. 4).",
    "The second paragraph is about flour.",
    "It is fine.",
]
WRAPPED = (
    "The mill stands at the lower end of the village where\nthe brook is widest, and it has two wheels. Of these\n"
    "only the left one turns in summer."
)
TABLE = "item,price,weight in grams\n" + "\n".join(f"sieve no {n},{n}49.50,{n}1200" for n in range(1, 30))
MARKDOWN = (
    "# Mill\n\nIt grinds.\n\n## Prices\n\n| grain | euros |\n| --- | --- |\n| rye | 149 |\n| oats | 162 |\n\n"
    "```\n# not a heading\n```\n\nPay at the door.\n\nOpening hours\n=============\n\nFrom six. To noon.\n"
)
CODE = "def grind(grain):\n    speed = fast(grain)\n    return speed\n\n# a comment\nprint(grind(3))\n"


def passage(text, inside):
    """The passage that characters are widened to."""
    start = text.index(inside)
    return text[slice(*whole(text, start, start + len(inside)))]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_passage_is_widened_to_its_sentence_and_no_further(sentence):
    assert passage(PROSE, sentence) == sentence
    assert passage(PROSE, sentence[3:-2]) == sentence


def test_sentences_of_other_scripts_end_too():
    assert passage("磨坊有两个轮子。左边的夏天转。右边的不转。", "边的夏") == "左边的夏天转。"
    assert passage("Мельница стоит внизу. Она старая. Её чинят.", "стара") == "Она старая."


def test_sentences_without_spaces_end_at_ascii_marks_too():
    mill = "磨坊有轮子!左边的夏天转.那边的不转?谁修它。版本.NET要3.5元!工人们."
    for sentence in "磨坊有轮子!", "左边的夏天转.", "那边的不转?", "谁修它。", "版本.NET要3.5元!", "工人们.":
        assert passage(mill, sentence[:2]) == passage(mill, sentence[1:-1]) == sentence
    assert passage("水車は二つ!左は夏に回る.「職人だ!」と言う?", "は夏") == "左は夏に回る."


def test_numbers_of_a_row_are_no_decimals():
    for row, at in (("1,2,3,4", 4), ("sieve,3,5,fine", 8), ("3,5,7", 2)):
        assert word_start(row, at) == at


def test_lines_of_wrapped_prose_are_no_edges():
    assert passage(WRAPPED, "brook is") == WRAPPED[: WRAPPED.index(" Of these")]
    assert passage(WRAPPED, "left one") == "Of these\nonly the left one turns in summer."


def test_rows_are_whole_and_have_the_names_of_their_columns():
    assert passage(TABLE, "49.50,71") == "sieve no 7,749.50,71200"
    assert passage(TABLE, "no 7,749.50,71200\nsieve no 8,8") == "sieve no 7,749.50,71200\nsieve no 8,849.50,81200"
    assert heading_of(TABLE, TABLE.index("sieve no 7")) == "item,price,weight in grams"
    assert heading_of(TABLE, 0) is None
    assert passage(MARKDOWN, "oats | 1") == "| oats | 162 |"
    assert heading_of(MARKDOWN, MARKDOWN.index("| oats")) == "Prices\n| grain | euros |"


def test_names_of_columns_are_known_where_lines_end_in_two_characters_and_cells_hold_commas():
    table = 'id,name,price\r\n1,"Sieve, fine",149\r\n2,Belt,162\r\n'
    text = f"# Mill\r\n\r\nIt grinds.\r\n\r\n{table}"
    assert passage(text, 'fine",1') == '1,"Sieve, fine",149'
    assert heading_of(text, text.index("1,")) == heading_of(text, text.index("2,Belt")) == "Mill\nid,name,price"
    assert heading_of(text, text.index("It grinds")) == "Mill"


def test_lines_of_code_are_whole_and_keep_their_indentation():
    assert passage(CODE, "fast(gr") == "    speed = fast(grain)"
    assert passage(CODE, "ed\n") == "    return speed"


@pytest.mark.parametrize(
    "start, heading",
    [("It grinds", "Mill"), ("Pay at", "Prices"), ("From six", "Opening hours"), ("To noon", "Opening hours")],
)
def test_a_heading_is_the_last_one_before(start, heading):
    assert heading_of(MARKDOWN, MARKDOWN.index(start)) == heading


def test_a_passage_that_begins_with_its_heading_needs_no_other():
    assert heading_of(MARKDOWN, MARKDOWN.index("## Prices")) is None


def test_without_sentences_a_passage_ends_at_words():
    text = "grain " * 500
    start, end = whole(text, 1202, 1300)
    assert (start, end) == (1200, 1301)
    assert whole("x" * 5000, 1202, 1300) == (1202, 1300)


@given(st.text(alphabet='ab1 .,\n\t"。!?-|#', max_size=120), st.integers(0, 120), st.integers(0, 120))
def test_any_passage_keeps_its_words_and_cuts_none(text, start, end):
    start, end = sorted((min(start, len(text)), min(end, len(text))))
    first, last = whole(text, start, end)
    kept = text[start:end].strip()
    if not kept:
        assert (first, last) == (start, end)
        return
    assert kept in text[first:last]
    assert start - first <= 2 * REACH and last - end <= 2 * REACH
    assert word_start(text, first) == first and word_end(text, last) == last


@pytest.mark.parametrize(
    "word",
    [
        "149",
        "1,024",
        "3.14",
        "06:40",
        "2026-11-28",
        "it's",
        "INV-2041/7",
        "grüße",
        "1.250,50",
        "3,5",
        "0,75",
        "1250,5",
        "https://mill.example/rye?kind=2&year=2031",
        "R&D",
        "हिन्दी",
        "தமிழ்",
    ],
)
def test_a_word_or_number_is_whole(word):
    text = f"of {word}, and"
    for at in range(4, 3 + len(word)):
        assert (word_start(text, at), word_end(text, at)) == (3, 3 + len(word))


def test_retrieved_passages_begin_and_end_at_sentences(hybrid, documents):
    texts = {document.id: document.text for document in documents}
    for node in hybrid.retrieve("Who lights the lamp?", k=20):
        assert isinstance(node, Passage)
        assert node.text == texts[node.doc_id][node.start : node.end]
        assert node.text[0].isupper() and node.text[-1] == "."
        assert node.start <= node.shown[0] + 1 and node.shown[1] <= node.end + 1, "but for a space"


def test_a_selection_is_read_as_whole_sentences_that_stand_there_once(hybrid, documents):
    selection = hybrid.select("Who lights the lamp and what does a ticket cost?", budget=96)
    texts = {document.id: document.text for document in documents}
    sources = selection.sources
    assert len(sources) == len(selection.runs) > 1
    for source, following in zip(sources, [*sources[1:], None], strict=True):
        assert source.text == texts[source.doc_id][source.start : source.end]
        assert source.kv_entries <= 96
        if following is not None and following.doc_id == source.doc_id:
            assert source.end <= following.start
    assert sum(source.kv_entries for source in sources) == selection.kv_entries
    assert all(piece[0].isupper() and piece.endswith(".") for piece in selection.text.split("\n\n"))


def test_a_passage_can_be_injected(hybrid):
    (passage,) = hybrid.retrieve("What does a ticket cost?", k=1)
    exactly = hybrid.selection_from([(passage.doc_id, *passage.shown)])
    assert (exactly.nodes[0].start, exactly.nodes[-1].end) == passage.shown
    widened = hybrid.selection_from([(passage.doc_id, passage.start, passage.end, 1, 0.5, passage.text)])
    assert passage.text in "".join(node.text for node in widened.nodes)


def test_what_is_read_has_its_heading(store):
    store.add("# Mill\n\n" + "It grinds. " * 30 + "\n\n## Prices\n\n" + "Rye is 149 euros. " * 40, id="mill")
    (passage,) = store.retrieve("What does rye cost?", k=1)
    assert passage.heading == "Prices"
    (source,) = store.selection_from([("mill", passage.start, passage.end)]).sources
    text = store.selection_from([("mill", passage.start, passage.end)]).text
    assert text == f"Prices\n{source.text}"
