"""Words as they are looked for: languages, identifiers, and the leaves that hold them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_context.model.tokenization import TokenizedText
from shared_context.store.database import Database
from shared_context.store.leaf_words import BEFORE_CHARACTERS, LeafWords
from shared_context.store.words import language_of, literals, other_spellings, query_terms, words


def terms(text, language=None):
    return set().union(*(word.terms for word in words(text, language or language_of(text))))


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("INV-2024/0031", "INV-2024/0031"),
        ("INV-2024/0031", "0031"),
        ("INV-2024/0031", "inv-2024"),
        ("v2.14.3", "2.14.3"),
        ("parse_raw_header", "parse_raw_header"),
        ("parse_raw_header", "header"),
        ("loadNextFrame", "loadnextframe"),
        ("loadNextFrame", "frames"),
        ("0x5C0471E8", "0x5c0471e8"),
        ("0x5C0471E8", "5C0471E8"),
        ("7f3a9c0d11be", "7F3A9C0D11BE"),
        ("2031-04-05T06:07:08Z", "2031-04-05"),
        ("KT-881-B", "kt-881-b"),
        ("KT-881-B", "kt881b"),
        ("KT881", "881"),
        ("1,299.00", "1299.00"),
        ("keeper@north.example", "north.example"),
        ("/srv/log/tide.txt", "tide.txt"),
        ("Alder's", "alder"),
        ("#48213", "48213"),
        ("C++", "c++"),
        ("F#", "f#"),
        ("an A+,", "A+"),
    ],
)
def test_a_name_is_found_whole_and_by_its_parts(written, asked):
    assert max(terms(asked, "english"), key=len) in terms(f"See {written}, please.", "english")


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("Die Häuser am Hafen wurden von den Fischern gebaut und sind nicht alt.", "Haus"),
        ("Смотритель зажигает лампы на северном причале.", "лампа"),
        ("管理員在日落前一小時點亮北碼頭的燈。", "日落"),
        ("燈台守は日没の一時間前に灯台のランプを点ける。", "日没"),
        ("يشعل الحارس المصابيح على الرصيف الشمالي.", "مصابيح"),
        ("Ο φύλακας ανάβει τις λάμπες.", "λάμπα"),
        ("คนเฝ้าประภาคารจุดตะเกียง", "ตะเกียง"),
        ("등대지기는 등불을 켠다.", "등불"),
    ],
)
def test_words_are_found_in_other_forms_and_scripts(written, asked):
    language = language_of(written)
    assert terms(asked, language) & terms(written)
    assert terms(asked, language) - terms(written) == set() or len(asked) > 2
    assert not terms("Ferry", language) & terms(written)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("english", "The lamp is lit by the keeper before the sun is down."),
        ("german", "Die Lampe wird vom Wärter angezündet, bevor die Sonne untergeht, und brennt bis zum Morgen."),
        ("french", "La lampe est allumée par le gardien avant que le soleil se couche."),
        ("spanish", "El guardián enciende la lámpara una hora antes de que se ponga el sol en el puerto."),
        ("dutch", "De lamp wordt door de wachter aangestoken voor het donker is."),
        ("turkish", "Bekçi lambayı her akşam bir saat önce yakar ve sabaha kadar bekler, bu da çok iyi."),
        ("english", "KT-881: 42; KT-882: 43"),
        ("english", ""),
    ],
)
def test_the_language_of_a_text_is_known_by_its_commonest_words(language, text):
    assert language_of(text) == language


def test_what_is_named_literally_is_not_what_is_counted_or_dated():
    asked = "Who paid invoice 48213 of INV_7 in 2019, all 12 of v2.1 in tide.txt?"
    assert set(literals(asked, "english")) == {"48213", "inv_7", "v2.1", "tide.txt"}
    assert literals("Who lights the well-kept lamp?", "english") == []


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("What does 0xACDB03DB do?", "acdb03db"),
        ("release v8.11.2", "8.11.2"),
        ("Who got 12,500.75 crowns?", "12500.75"),
        ("Is http://10.173.184.138:8080/ up?", "10.173.184.138"),
        ("Who wrote src/core/pump12.py?", "pump12.py"),
        ("the log at 2031-04-05 06:07:08", "2031-04-05T06:07:08Z"),
        ("the log at 2031-04-05T06:07:08.250Z", "06:07:08"),
        ("What was paid on 3 May 2031?", "2031-05-03"),
        ("What was paid on March 5th, 2031?", "2031-03-05"),
        ("the delay retry size setting", "delay_retry_size"),
        ("the delay retry limit", "delayRetryLimit"),
        ("Is part AB 1234 in stock?", "ab-1234"),
        ("Who has the number 0471-555-8812?", "+45 471 555 8812"),
        ("Who has the number 471.555.8812?", "(471) 555-8812"),
        ("Who has the number 4715558812?", "(471) 555-8812"),
        ("Who has the number (471) 555 8812?", "4715558812"),
        ("the van LB52XKT", "LB52 XKT"),
        ("the van lb52xkt", "LB-52-XKT"),
        ("the part kt881b", "KT 881 B"),
        ("the account NL03 8841 2207 9165 30", "NL0388412207916530"),
        ("the account NL0388412207916530", "NL03 8841 2207 9165 30"),
        ("the book 978-3-418-20561-7", "9783418205617"),
        ("the paper 2709.41835", "arXiv:2709.41835"),
        ("Who got 48210,75 crowns?", "48.210,75"),
        ("Who got 48.210,75 crowns?", "48,210.75"),
        ("Who got 48210.75 crowns?", "48'210.75"),
        ("Who got 48210,75 crowns?", "48 210,75"),
        ("Who got 48.210 crowns?", "48210"),
        ("the card 5c-0e-91-7a-d3-22", "5C:0E:91:7A:D3:22"),
        ("the card 5c0e917ad322", "5C:0E:91:7A:D3:22"),
        ("the option --max-open-files", "max_open_files"),
        ("the setting max_open_files", "max-open-files"),
        ("the setting max_open_files", "maxOpenFiles"),
        ("the task lamp wick trim", "lamp-wick-trim"),
        ("the lamp limit", "lampLimit"),
        ("the setting maxOpenFiles", "max_open_files"),
        ("the setting maxOpenFiles", "max-open-files"),
        ("the book 9783418205617", "978-3-418-20561-7"),
        ("the book 9783418205617", "978 3 418 20561 7"),
        ("the book 978 3 418 20561 7", "978-3-418-20561-7"),
        ("the book 341820561X", "3-418-20561-X"),
        ("the book 3-418-20561-X", "341820561X"),
        ("the commit 7c3e91f0a2", "7c3e91f0a2b84d5566f7081920a1b2c3d4e5f607"),
        ("the commit 7c3e91f0a2b84d5566f7081920a1b2c3d4e5f607", "7c3e91f0"),
        ("the job 5f0c1a2b-77d1-4e0f-9a31-0c44de81b6aa", "5f0c1a2b77d14e0f9a310c44de81b6aa"),
        ("the job 5f0c1a2b77d14e0f9a310c44de81b6aa", "5f0c1a2b-77d1-4e0f-9a31-0c44de81b6aa"),
        ("the card 4929118200337716", "4929 1182 0033 7716"),
        ("what was paid on 20310503", "2031-05-03"),
        ("What is at pier.example.org/tides?", "https://www.pier.example.org/tides/"),
        ("What is at www.pier.example.org/tides?", "https://pier.example.org/tides"),
        ("What is at pier.example.org/tides?", "http://www.pier.example.org"),
        ("What did Ada O'Quist take?", "Ada O’Quist"),
        ("What did O’Quist take?", "O'Quist"),
        ("What did O`Quist take?", "OQuist"),
        ("Was hat Frau Koehler?", "Frau Köhler"),
        ("Was hat Frau Köhler?", "Frau Koehler"),
        ("Was hat Frau Koehler-Lund?", "Frau Köhler-Lund"),
        ("the EFTA treaty", "the E.F.T.A. treaty"),
        ("the E.F.T.A. treaty", "the EFTA treaty"),
        ("What was paid on 2031-05-03?", "03.05.2031"),
        ("Was geschah am 3.5.2031?", "03.05.2031"),
        ("Was geschah am 3.5.2031?", "2031-05-03"),
        ("What was paid on 3 May 2031?", "03/05/2031"),
        ("What was paid on 3/5/2031?", "05/03/2031"),
        ("Who has the 7×22 plate?", "a plate of 7x22 mm"),
        ("Who brought the anchor of 70kg?", "an anchor of 70 kg"),
        ("What does §35(2) say?", "§ 35 (2)"),
        ("What does Art. 6 say?", "Article 6(3)"),
    ],
)
def test_what_is_named_is_found_in_another_spelling(asked, written):
    assert set(other_spellings(asked, "english")) & set(terms(written, "english"))


@pytest.mark.parametrize("asked", ["Is it for us in the U.S.?", "Who is the Queen?", "What are 2 of the 3?"])
def test_plain_words_and_counts_are_not_spelled_otherwise(asked):
    assert other_spellings(asked, "english") == []


@pytest.mark.parametrize("mark", ["\u00ad", "\u200b", "\u2060", "\ufeff"])
def test_what_nobody_sees_is_no_part_of_a_word(mark):
    for written, asked in (
        (f"har{mark}bour", "harbour"),
        ("harbour", f"{mark}harb{mark}our"),
        (f"AB{mark}-1234", "AB-1234"),
    ):
        assert set(query_terms(asked, "english")) == set(terms(written, "english"))
    assert literals(f"Where is A{mark}B-1234?", "english") == ["ab-1234"]


def test_words_that_stand_together_are_no_name_for_that():
    assert other_spellings("What is the long term plan?", "english") == [
        "long_term",
        "long_term_plan",
        "long-term-plan",
        "longtermplan",
        "term_plan",
    ]
    assert other_spellings("Who lights the well-kept lamp in the yard?", "english") == ["well_kept"]


@pytest.mark.parametrize("written", ["max_open_files", "MAX_OPEN_FILES", "maxOpenFiles"])
def test_a_name_of_several_words_is_found_in_small_letters_without_marks(written):
    assert set(query_terms("What is maxopenfiles?", "english")) <= terms(written)


def test_a_long_hash_is_found_by_its_first_digits():
    assert terms("7c3e91f0a2b84d5566f7081920a1b2c3d4e5f607") >= set(literals("the commit 7c3e91f", "english"))
    assert "2031050" not in terms("paid on 20310503")


def test_a_name_in_the_layout_that_was_asked_for_counts_once():
    for asked in "48,210.75", "471-555-8812", "NL0388412207916530", "max_open_files", "5c:0e:91:7a:d3:22", "1,024":
        assert not set(literals(asked, "english")) & set(other_spellings(asked, "english"))


@pytest.mark.parametrize("asked", ["3.14 or 24-10", "1914-1918 or 2019", "06:40 or 3.5.", "1,024", "2.1"])
def test_few_figures_are_no_number_in_groups(asked):
    assert not {name for name in other_spellings(asked, "english") if name.isdigit() and len(name) < 4}


def test_spellings_are_few_whatever_is_asked():
    assert len(other_spellings("471-555-8812 48210,75 " * 500, "english")) < 50
    assert len(other_spellings(" ".join(f"{n}-{n + 1}-{n + 2}" for n in range(1000, 4000, 3)), "english")) < 250


def test_a_question_is_asked_by_its_own_words():
    assert query_terms("When does the ferry leave?", "english") == ["ferri", "leav"]
    assert query_terms("What is it?", "english") == ["what", "is", "it"]
    assert query_terms("😀", "english") == []


def leaf_words(text, bounds, leaf_size):
    return LeafWords.of(text, TokenizedText(np.zeros(len(bounds) - 1, np.int32), np.array(bounds)), leaf_size)


def test_a_word_on_the_edge_of_two_leaves_belongs_to_both():
    held = leaf_words("lighthouse boat", [0, 5, 10, 11, 15], 1)
    assert held.terms == ["lighthous", "lighthous", "", "boat"]
    whole = leaf_words("lighthouse boat", [0, 5, 10, 11, 15], 4)
    assert whole.terms == ["boat lighthous"]


def leaf_words_slowly(text, bounds, leaf_size, before):
    """Each word of the text and of what stands before it, held against each leaf."""
    starts = [len(before) + at for at in bounds[:-1][::leaf_size]]
    found = [set() for _ in starts]
    for word in words(before + text, language_of(text)):
        for leaf, (start, end) in enumerate(zip(starts, [*starts[1:], len(before + text)], strict=True)):
            if word.start < end and word.end > start:
                found[leaf] |= word.terms
    return [" ".join(sorted(of_leaf)) for of_leaf in found]


characters = st.sampled_from([*"ab1_-./:@~\\+&=#',\"’ é東京ไม", "𠀀", "\n", "😀", "\u0301", "و"])
texts = st.lists(characters, min_size=1, max_size=60).map("".join)
NAMESPACE, ANOTHER = 1, 2


@settings(max_examples=200, deadline=None)
@given(texts, texts | st.just(""), st.integers(1, 4), st.data())
def test_a_leaf_has_the_words_that_lie_in_it_or_across_its_edges(text, before, leaf_size, drawn):
    inside = drawn.draw(st.lists(st.integers(0, len(text) - 1), max_size=20))  # several for one character, too
    bounds = [0, *sorted(inside), len(text)]
    tokens = TokenizedText(np.zeros(len(bounds) - 1, np.int32), np.array(bounds))
    found = LeafWords.of(text, tokens, leaf_size, before=before)
    assert found.terms == leaf_words_slowly(text, bounds, leaf_size, before)


def test_the_words_of_a_chunk_are_those_of_the_text_around_it_however_long_that_is():
    text = " ".join(f"berth-{number} for_boat{number % 7} Straße/{number}.txt" for number in range(300))
    bounds = [*range(0, len(text), 5), len(text)]
    tokens = TokenizedText(np.zeros(len(bounds) - 1, np.int32), np.array(bounds))
    for before in ("", "harbour", "the pier of " * 30 + "north"):
        by_chunk = LeafWords.by_chunk(text, tokens, 8, 64, "english", before)
        found = []
        for first in range(0, len(tokens), 64):
            own = slice(5 * first, 5 * (first + 64))
            ends = [bound - 5 * first for bound in bounds[first : first + 65]]
            chunk = TokenizedText(np.zeros(len(ends) - 1, np.int32), np.array(ends))
            near = (before + text[: 5 * first])[-BEFORE_CHARACTERS:]
            found += LeafWords.of(text[own], chunk, 8, "english", near).terms
        assert by_chunk.terms == found


@settings(max_examples=100, deadline=None)
@given(st.lists(texts, min_size=1, max_size=4), st.data())
def test_the_leaves_with_a_word_are_those_whose_text_has_it_whatever_came_and_went(held, drawn):
    database = Database(None, {})
    stored = {}
    for key, text in enumerate(held, start=1):
        bounds = sorted({0, len(text), *drawn.draw(st.sets(st.integers(0, len(text)), max_size=8))})
        tokens = TokenizedText(np.zeros(len(bounds) - 1, np.int32), np.array(bounds))
        stored[key] = text, tokens, LeafWords.of(text, tokens, 2)
    with database.transaction():
        database.add_namespace("another")
        for key, (_, _, found) in stored.items():
            database.words.add(NAMESPACE, key, found)
            database.words.add(ANOTHER, key + len(held), found)
        for key in drawn.draw(st.sets(st.sampled_from(sorted(stored)))):
            *_, words = stored.pop(key)
            database.words.remove(NAMESPACE, key, words)
    expected = {}
    for key, (_, _, found) in stored.items():
        for leaf, row in enumerate(found.terms):
            for term in row.split():
                expected.setdefault(term, []).append((key, leaf))
    everything = terms("".join(held)) | set(expected)
    with database.snapshot():
        for term in everything:
            keys, leaves = database.words.leaves_with(NAMESPACE, term)
            assert list(zip(keys.tolist(), leaves.tolist(), strict=True)) == expected.get(term, []), term
        for key, (*_, found) in stored.items():
            assert database.words.described(key) == (found.language, 2)
    database.close()


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("What is vitamin C for?", {"C", "c", "vitamin"}),
        ("vitamin c", {"c", "vitamin"}),
        ("Is vitamin A in carrots?", {"A", "vitamin", "carrot"}),
        ("A lamp", {"lamp"}),
        ("Can I take a lamp?", {"take", "lamp"}),
        ("the lamp I took", {"lamp", "took"}),
        ("When did Olaf I die?", {"olaf", "I", "i", "die"}),
    ],
)
def test_a_capital_that_stands_alone_is_looked_for_where_it_names_something(asked, found):
    assert set(query_terms(asked, "english")) == found


def test_a_capital_that_stands_alone_is_kept_as_itself_too():
    assert {"C", "c", "A"} <= terms("Vitamin C and vitamin A.", "english")
    assert not {"A", "C"} & terms("a c", "english")
