"""What is named literally is found, in every language, and stays found however the store changes."""

import random
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_context import Document, TreeConfig
from shared_context.model.tokenization import TokenizedText
from shared_context.store.database import Database
from shared_context.store.leaf_words import LeafWords
from shared_context.store.lexical import Gains, bm25, bm25_naive
from shared_context.store.node_data import NodeData
from shared_context.store.node_index import NodeIndex
from shared_context.store.postings import Postings
from shared_context.store.together import longest_run, together
from shared_context.store.word_index import NamespaceWords
from shared_context.store.words import told_apart, ways_to_write

PEOPLE = ("the pilot", "the cooper", "the chandler", "the smith")


def ledger(kind, seed=3, rows=120):
    """A name of each row, and the row's text."""
    draw = random.Random(seed)
    names = {
        "number": lambda: str(draw.randint(20000, 89999)),
        "version": lambda: f"{draw.randint(1, 9)}.{draw.randint(0, 40)}.{draw.randint(0, 40)}",
        "hex": lambda: "".join(draw.choices("0123456789abcdef", k=10)),
        "snake": lambda: "_".join(draw.sample(["oil", "wick", "lens", "bell", "rope", "tide", "berth", "mast"], 3)),
        "part": lambda: f"{draw.choice('BDFH')}{draw.choice('KMPR')}-{draw.randint(100, 999)}-{draw.choice('XYZ')}",
        "time": lambda: (
            f"2031-{draw.randint(10, 12)}-{draw.randint(10, 28)}T{draw.randint(10, 23)}:{draw.randint(10, 59)}"
        ),
    }
    found = dict.fromkeys(names[kind]() for _ in range(rows))
    return {name: f"Entry {name}: {draw.choice(PEOPLE)} took {draw.randint(2, 90)} fathoms.\n" for name in found}


@pytest.mark.parametrize("kind", ["number", "version", "hex", "snake", "part", "time"])
def test_what_is_named_is_shown(open_store, kind):
    rows = ledger(kind)
    store = open_store()
    store.add("".join(rows.values()), id="ledger")
    for name in random.Random(5).sample(list(rows), 8):
        for policy in "hybrid", "lexical":
            selection = store.select(f"How much was taken by entry {name}?", budget=256, policy=policy)
            assert rows[name].strip() in selection.text, (name, policy)


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("hex", lambda name: f"Entry 0x{name.upper()}?"),
        ("version", lambda name: f"({name}), how much?"),
        ("snake", lambda name: f"How much for the {name.replace('_', ' ')} entry?"),
        ("time", lambda name: f"Which entry is of {name.replace('T', ' ')}?"),
    ],
)
def test_what_is_named_in_another_spelling_is_shown(open_store, kind, asked):
    rows = ledger(kind)
    store = open_store()
    store.add("".join(rows.values()), id="ledger")
    for name in random.Random(6).sample(list(rows), 4):
        assert rows[name].strip() in store.select(asked(name), budget=256).text, name


def register(line, seed=4, rows=120):
    """Lines all of whose words stand in others, too; what is said behind what they name has its words from them."""
    draw = random.Random(seed)
    people, given = ["Ada", "Olaf", "Ines", "Tilda", "Karl", "Ruth"], ["Quist", "Marr", "Holm", "Lund", "Rask", "Moe"]
    found = {}
    while len(found) < rows:
        name = line.format(
            given=draw.choice(people),
            family=draw.choice(given),
            other=draw.choice(given),
            thing=draw.choice(["rope", "lamp", "sail", "bell", "crane", "oar", "kettle", "plank"]),
            part=draw.choice(["wick", "lens", "mast", "keel", "deck", "hull", "log", "buoy"]),
            letter=draw.choice("ABCDEFGH"),
            number=draw.randint(1, 40),
        )
        found[name] = f"{name}: {draw.choice(people)} {draw.choice(given)} took {draw.randint(2, 40)} fathoms there.\n"
    return found


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("{given} {family}-{other}, {thing}", "What of the {} then?"),
        ("'{thing}' has no '{part}' for {given}", "I get {}. When is that seen?"),
        ("Berth {letter}, {thing}, {given}", "What is said of berth {}?"),
        ("{thing} to {part}, {number}–{letter}", "{}"),
    ],
)
def test_a_line_is_shown_whose_words_stand_together_nowhere_else(open_store, line, asked):
    rows = register(line)
    store = open_store()
    store.add("".join(rows.values()), id="register")
    names = random.Random(7).sample(list(rows), 8)
    shown = [rows[name].strip() in store.select(asked.format(name), budget=128).text for name in names]
    assert sum(shown) >= 7, [name for name, there in zip(names, shown, strict=True) if not there]


@pytest.mark.parametrize("asked", ["What did {given} {family} take?", "What was taken by {family}, {given}?"])
def test_of_lines_with_the_same_words_that_is_shown_in_which_they_stand_side_by_side(open_store, asked):
    given, family = ["Ada", "Olaf", "Ines", "Tilda", "Karl", "Ruth"], ["Quist", "Marr", "Holm", "Lund", "Rask", "Moe"]
    draw = random.Random(5)
    pairs = draw.sample([(a, b) for a in given for b in family], 30)
    things = ["rope", "lamp", "sail", "bell", "crane", "oar"]
    rows = {(a, b): f"{a} {b} took a {draw.choice(things)} and a {draw.choice(things)}.\n" for a, b in pairs}
    store = open_store()
    store.add("".join(rows.values()), id="register")
    names = draw.sample(pairs, 10)
    shown = [rows[a, b].strip() in store.select(asked.format(given=a, family=b), budget=128).text for a, b in names]
    assert sum(shown) >= 9, [name for name, there in zip(names, shown, strict=True) if not there]


def test_what_stands_side_by_side_in_other_documents_takes_no_place(open_store):
    given, family = ["Ada", "Olaf", "Ines", "Tilda", "Karl", "Ruth"], ["Quist", "Marr", "Holm", "Lund", "Rask", "Moe"]
    draw = random.Random(5)
    pairs = draw.sample([(a, b) for a in given for b in family], 30)
    rows = {(a, b): f"{b}, {a}, took {draw.randint(2, 90)} fathoms of rope and a lamp.\n" for a, b in pairs}
    store = open_store()
    store.add("".join(rows.values()), id="register")
    store.add("".join(f"{a} {b} is asked to see the harbour master about a berth.\n" for a, b in pairs), id="letters")
    names = draw.sample(pairs, 10)
    shown = [
        rows[a, b].strip() in store.select(f"What did {a} {b} take?", budget=128, doc_ids=["register"]).text
        for a, b in names
    ]
    assert sum(shown) >= 9, [name for name, there in zip(names, shown, strict=True) if not there]


def test_a_name_is_shown_whose_parts_stand_side_by_side_in_no_other(open_store):
    things = ["Rope", "Lamp", "Sail", "Bell", "Crane", "Oar", "Kettle", "Plank", "Wick", "Mast", "Buoy", "Log"]
    draw = random.Random(6)
    pairs = draw.sample([(a, b) for a in things for b in things if a != b], 120)
    rows = {
        (a, b): f"{a}{b}Keeper {draw.choice(['holds', 'lends', 'counts', 'paints'])} the {draw.choice(things).lower()} "
        f"and {draw.randint(2, 40)} fathoms of {draw.choice(things).lower()} for {draw.choice(PEOPLE)}.\n"
        for a, b in pairs
    }
    store = open_store()
    store.add("".join(rows.values()), id="names")
    names = draw.sample(pairs, 8)
    asked = "who is it for with the {} {} keeper"
    shown = [rows[a, b].strip() in store.select(asked.format(a.lower(), b.lower()), budget=128).text for a, b in names]
    assert sum(shown) >= 7, [name for name, there in zip(names, shown, strict=True) if not there]


def test_parts_of_one_name_are_found_where_they_stand_together(open_store):
    draw = random.Random(8)
    files = ["rope", "lamp", "sail", "bell", "crane", "oar", "kettle", "plank"]
    lines = draw.sample([(a, n) for a in files for n in range(100, 140)], 120)
    rows = {(a, n): f'In "{a}.py", line {n}, the {draw.choice(files)} of {draw.choice(PEOPLE)}.\n' for a, n in lines}
    store = open_store()
    store.add("".join(rows.values()), id="trace")
    names = draw.sample(lines, 8)
    shown = [rows[a, n].strip() in store.select(f"What failed in {a}.py:{n}?", budget=128).text for a, n in names]
    assert sum(shown) >= 7, [name for name, there in zip(names, shown, strict=True) if not there]


@pytest.mark.parametrize(
    ("text", "run"),
    [
        ("Olaf IV of Holm", 3),
        ("IV of Holm, Olaf", 2),
        ("the IV. Olaf saw Holm", 1),
        ("Olaf, Olaf IV, Holm", 3),
        ("Olaf IV in Holm-3", 2.75),
        ("a lamp", 0),
        ("", 0),
    ],
)
def test_the_longest_run_of_a_query_is_counted_in_its_words(text, run):
    words = ways_to_write("Who was Olaf IV of Holm?", "english")
    assert [sorted(ways[0]) for ways in words] == [["olaf"], ["iv"], ["holm"]]
    assert longest_run(words, told_apart(text, "english")) == run


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("Wer zündet die Lampen an?", "Wärterin Ada Quist"),
        ("Кто зажигает лампу?", "смотрительница Ада Квист"),
        ("誰點亮碼頭的燈?", "管理員艾達"),
        ("波止場のランプは誰が点けますか?", "灯台守のアダ"),
        ("من تشعل المصابيح على الرصيف؟", "الحارسة آدا"),
    ],
)
def test_a_question_is_answered_in_its_own_language(open_store, asked, answer):
    store = open_store()
    store.add(
        [
            Document(text, str(number))
            for number, text in enumerate(
                [
                    "Die Fähre nach Holm fährt dreimal am Tag ab. Die Suppe in der Küche wird aus Dorsch gekocht.",
                    "Eine Stunde vor Sonnenuntergang wird die Lampe am Nordkai von der Wärterin Ada Quist angezündet.",
                    "Паром на остров отходит три раза в день. Суп на кухне варят из трески и лука-порея.",
                    "За час до заката смотрительница Ада Квист зажигает лампы на северном причале.",
                    "渡輪每天三次開往小島。廚房的湯是用鱈魚和韭蔥煮的。",
                    "日落前一小時,管理員艾達點亮北碼頭的燈。",
                    "フェリーは一日三回、島へ出ます。台所のスープは鱈と葱で作ります。",
                    "日没の一時間前に、灯台守のアダが波止場のランプを点けます。",
                    "تغادر العبارة إلى الجزيرة ثلاث مرات في اليوم. يُطبخ الحساء من سمك القد والكراث.",
                    "قبل غروب الشمس بساعة تشعل الحارسة آدا المصابيح على الرصيف الشمالي.",
                ]
            )
        ]
    )
    for policy in "hybrid", "lexical":
        assert answer in store.retrieve(asked, 1, policy=policy)[0].text, policy


@pytest.mark.parametrize("query", ["the", "😀", "What is it?", "!?", "_", "--"])
def test_a_query_without_words_of_its_own_is_no_error(filled, query):
    for policy in "hybrid", "lexical":
        assert filled.select(query, budget=64, policy=policy).kv_entries > 0


def test_words_follow_every_change(filled):
    def best(query):
        (node,) = filled.retrieve(query, 1, policy="lexical")
        return node.doc_id

    assert best("Who cleans with spirit?") == "lamp"
    filled.delete("lamp")
    assert best("soup") == "kitchen"
    filled.update("ferry", "The ferry was sold for scrap.")
    assert best("bicycles") != "ferry"
    assert best("scrap") == "ferry"
    filled.append("kitchen", " The innkeeper distils spirits.")
    assert best("spirit") == "kitchen"
    filled.add("A spirited horse.", id="stable", metadata={"a": 1})
    filled.update("stable", metadata={"a": 2})
    assert best("horses") == "stable"


def test_a_rolled_back_change_leaves_no_words(filled, monkeypatch):
    def ranked():
        return [node.doc_id for node in filled.retrieve("quagga", 3, policy="lexical")]

    before = ranked()
    monkeypatch.setattr(filled._database, "remove", lambda key: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        filled.add([Document("A quagga.", "one"), Document("Two quaggas.", "lamp")], replace=True)
    monkeypatch.undo()
    assert ranked() == before
    filled.add("A quagga.", id="one")
    assert filled.retrieve("quagga", 1, policy="lexical")[0].doc_id == "one"


def test_words_that_another_store_of_the_folder_adds_are_found(filled, path, open_store):
    second = open_store(path)
    assert second.retrieve("okapi", 1, policy="lexical")[0].doc_id != "animal"
    filled.add("An okapi.", id="animal")
    assert second.retrieve("okapi", 1, policy="lexical")[0].doc_id == "animal"
    filled.delete("animal")
    assert second.retrieve("okapi", 1, policy="lexical")[0].score <= 0


def test_deleting_while_others_select_is_no_error(filled):
    failures = []

    def ask():
        try:
            for _ in range(10):
                filled.select("Who trims the wick of lamp 7?", budget=64)
        except Exception as error:  # of any kind: the test is that there is none
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(5):
        filled.add(f"A note on lamp {number}.", id=f"note {number}")
        filled.delete(f"note {number}")
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_conversation_is_searched_by_its_own_words_alone(filled):
    filled.add("The quagga is extinct. " * 8, id="animal")
    talk = filled.conversation("talk", recent_tokens=8)
    for text in "My boat is the quagga.", "It rains a lot here.", "Good night then.", "And good morning.":
        talk.append("user", text)
    assert "boat" in talk.select("Where is the quagga?", policy="lexical", budget=32).text
    found = filled.select("Where is the quagga?", policy="lexical", budget=32)
    assert "animal" in found.doc_ids and "boat" not in found.text


TREE = TreeConfig(chunk_size=8, height=1)
leaf_texts = st.lists(st.sampled_from(["lamp", "wick", "oil"]), max_size=4).map(" ".join)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(1, 9), st.lists(leaf_texts, min_size=1, max_size=24), min_size=1, max_size=4))
def test_bm25_is_that_of_the_formula(held):
    database, index = Database(None, {}), NodeIndex(TREE, 2)
    naive_leaves, naive_documents = [], []
    with database.transaction():
        for key, leaves in sorted(held.items()):
            text = "".join(f"{leaf:20}" for leaf in leaves)
            tokens = TokenizedText(np.zeros(4 * len(leaves), np.int32), np.arange(0, len(text) + 1, 5))
            database.words.add(1, key, LeafWords.of(text, tokens, TREE.leaf_size))
            nodes = NodeData(
                np.zeros((len(tokens), 1), np.int8), np.zeros(len(tokens), np.float16), np.zeros((1, 0), np.float32)
            )
            index.add(key, tokens.ids, nodes)
            naive_leaves += [leaf.split() for leaf in leaves]
            naive_documents += [key] * len(leaves)
    with database.snapshot():
        terms = ["lamp", "oil", "tide"]
        gains = Gains(Postings(NamespaceWords(database.words, 1), index), terms, index.leaves())
        scores = bm25(terms, gains)
        # Of some leaves alone the scores are the same, to the bit.
        some = np.arange(len(scores))[1::3]
        few = Gains(Postings(NamespaceWords(database.words, 1), index), terms, index.leaves(), some)
        assert bm25(terms, few).tolist() == scores[some].tolist()
        every = Gains(Postings(NamespaceWords(database.words, 1), index), terms, index.leaves(), np.arange(len(scores)))
        asked = [(frozenset([term]),) for term in terms]
        said = [leaf for _, leaves in sorted(held.items()) for leaf in leaves]
        found = [together(asked, of, "english", said.__getitem__).tolist() for of in (every, gains)]
        assert found[0] == found[1]
    np.testing.assert_allclose(scores, bm25_naive(terms, naive_leaves, naive_documents), rtol=1e-5)
    database.close()
