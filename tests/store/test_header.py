"""Metadata are searched and can be shown; what all nodes of a document share cannot be changed by one."""

import copy
import json
import pickle

import pytest
import torch

from shared_context import Document
from shared_context.errors import DocumentError
from shared_context.store.header import HEADER_CHARACTERS, header
from shared_context.store.read_only import read_only

REPORT = "Revenue for the year came to {} crowns. Costs were in line with the plan, and no dividend is proposed."
TOWNS = ("Skagen", "Visby", "Turku", "Bergen")


def reports(**settings):
    return [
        Document(REPORT.format(100 + n), town, {"town": town, "year": 2020 + n}, **settings)
        for n, town in enumerate(TOWNS)
    ]


def best(store, query):
    return store.retrieve(query, 1)[0].doc_id


def test_a_header_tells_metadata_line_by_line():
    metadata = {"title": "On\n  lamps", "year": 1874, "tags": ["oil", "wick"], "draft": False}
    assert header(metadata) == "title: On lamps\nyear: 1874\ntags: oil, wick\ndraft: False"
    assert header(metadata, {"tags", "draft", "missing"}) == "title: On lamps\nyear: 1874"


def test_a_header_tells_what_is_nested_where_there_is_text_in_it():
    assert header(
        {"club": {"name": "Holm Rowing", "seat": {"city": "Trier", "lot": 7}, "boats": [4, 8], "box": {"x": 1}}}
    ) == ("club: name Holm Rowing, seat city Trier, lot 7")
    assert header({"authors": [{"name": "Ada Quist"}, {"name": "Ilse Marr", "age": 40}, {"x": 3}]}) == (
        "authors: name Ada Quist, name Ilse Marr, age 40"
    )


@pytest.mark.parametrize(
    "nothing",
    [None, "", " \n", [], {}, {"a": {"b": 1}}, [[1, 2], [3, 4]], [{"a": 1}], [None], {"a": {"b": [1, [""]], "c": " "}}],
)
def test_what_has_no_words_is_left_out(nothing):
    assert header({"title": "Lamps", "other": nothing}) == "title: Lamps"


def test_a_header_stays_short_however_much_there_is():
    metadata = {"boxes": list(range(100_000)), "abstract": "long " * 1000, "pages": [{"text": "wick"}] * 400}
    metadata |= {"words": {str(n): "wick" for n in range(100_000)}, "title": "Lamps"}
    assert header(metadata) == "title: Lamps"
    assert len(header({str(n): "some words" for n in range(1000)})) <= HEADER_CHARACTERS


def test_a_document_is_found_by_its_metadata(store):
    store.add(reports())
    assert [best(store, f"What was the revenue of {town}?") for town in TOWNS] == list(TOWNS)


def test_a_document_is_found_by_metadata_that_are_nested(store):
    store.add([Document(REPORT.format(100 + n), town, {"seat": {"town": town}}) for n, town in enumerate(TOWNS)])
    assert [best(store, f"What was the revenue of {town}?") for town in TOWNS] == list(TOWNS)


def test_a_document_is_found_by_a_number_of_its_metadata(store):
    texts = [REPORT.format(100 + n) for n in range(8)]
    store.add([Document(t, f"r{n}", {"title": f"Report Q{1 + n % 4} {2020 + n // 4}"}) for n, t in enumerate(texts)])
    asked = [f"What was the revenue in Q{1 + n % 4} of {2020 + n // 4}?" for n in range(8)]
    assert [best(store, query) for query in asked] == [f"r{n}" for n in range(8)]
    store.update("r3", metadata={"title": "Report Q4 2031"})
    assert best(store, "revenue in 2031") == "r3"
    store.append("r3", " All is well.")
    assert best(store, "revenue in 2031") == "r3"
    store.delete("r3")
    assert best(store, "revenue in Q4 2021") == "r7"


def test_a_document_is_found_by_its_metadata_through_an_embedder_too(open_store, embedder):
    store = open_store(embedder=embedder)
    store.add(reports())
    for policy in ("hybrid", "embedding"):
        found = [store.retrieve(f"What was the revenue of {town}?", 1, policy=policy)[0].doc_id for town in TOWNS]
        assert found == list(TOWNS)


def test_unsearched_metadata_change_no_score(store, open_store):
    store.add(reports(unsearched_keys=("town", "year")))
    bare = open_store(config=store.config)
    bare.add([Document(d.text, d.id) for d in reports()])
    query = "What was the revenue of Turku?"
    scores = [{node.doc_id: node.score for node in each.retrieve(query, 4)} for each in (store, bare)]
    # Each store makes codes by directions of its own, which rounding may turn a little.
    assert scores[0] == pytest.approx(scores[1], abs=0.01)
    assert store.ids({"town": "Turku"}) == ["Turku"]  # filters see them


def test_new_metadata_are_found_and_old_ones_are_not(store, path, open_store):
    store.add(reports())
    other = open_store(path)
    assert best(other, "What was the revenue of Turku?") == "Turku"
    store.update("Bergen", metadata={"town": "Turku"})
    store.update("Turku", metadata={"town": "Malmö"})
    for each in (store, other, open_store(path)):
        assert best(each, "What was the revenue of Turku?") == "Bergen"
        assert best(each, "What was the revenue of Malmö?") == "Turku"


def test_keys_that_are_excluded_are_kept_and_come_back(store, path, open_store):
    documents = reports(unsearched_keys=("year",), hidden_keys=("town", "year"))
    store.add(documents)
    for each in (store, open_store(path)):
        assert list(each) == documents
        node = each.retrieve("What was the revenue of Visby?", 1)[0]
        assert (node.doc_id, node.unsearched_keys, node.hidden_keys) == ("Visby", ("year",), ("town", "year"))
    store.append("Visby", " The mayor was content.")
    assert store.get("Visby").hidden_keys == ("town", "year")
    assert best(store, "What was the revenue of Visby?") == "Visby"


@pytest.mark.parametrize("keys", ["town", [1], ["\ud800"]])
def test_keys_that_are_no_keys_are_refused(store, keys):
    with pytest.raises(DocumentError, match="hidden_keys"):
        store.add(Document("Text.", "a", {"town": "Visby"}, hidden_keys=keys))
    assert len(store) == 0


def test_a_file_is_searched_by_its_name_and_not_by_its_path(store, tmp_path):
    file = tmp_path / "lamps.md"
    file.write_text("The wick is trimmed at dusk.")
    (id,) = store.add(file)
    assert store.get(id).unsearched_keys == store.get(id).hidden_keys == ("file_path",)


def test_nodes_share_metadata_that_cannot_be_changed(store):
    text = " ".join(f"On day {number} the wick is trimmed at dusk." for number in range(20))
    store.add(text, id="a", metadata={"pages": [1, 2], "by": {"name": "Ada"}})
    nodes = store.select("When is the wick trimmed?", budget=64).nodes
    assert len({id(node.metadata) for node in nodes}) == 1 < len(nodes)
    metadata = nodes[0].metadata
    for change in (
        lambda: metadata.update(a=1),
        lambda: metadata.__setitem__("a", 1),
        lambda: metadata["pages"].append(3),
        lambda: metadata["by"].pop("name"),
    ):
        with pytest.raises(TypeError, match="deepcopy"):
            change()
    own = copy.deepcopy(metadata)
    own["pages"].append(3)
    assert metadata == store.get("a").metadata == {"pages": [1, 2], "by": {"name": "Ada"}}


def test_read_only_values_are_json_values():
    given = {"a": [1, {"b": [None, True]}], "c": "d"}
    shared = read_only(given)
    assert shared == given
    assert json.dumps(shared) == json.dumps(given)
    for made in (pickle.loads(pickle.dumps(shared)), copy.deepcopy(shared)):
        made["a"][1]["b"].append(2)
    assert {**copy.copy(shared), "e": 1}["e"] == 1


def test_a_store_of_the_format_before_headers_and_words_opens_and_gets_them(store, path, open_store, to_format_2):
    store.add(reports())
    store.close()
    to_format_2(path)
    opened = open_store(path)
    assert opened.ids() == list(TOWNS)
    assert opened.retrieve("dividends", 1, policy="lexical")[0].score > 0
    assert opened.get("Visby").metadata == {"town": "Visby", "year": 2021}
    opened.update("Visby", metadata={"town": "Visby"})
    assert best(opened, "What was the revenue of Visby?") == "Visby"


def test_a_header_is_shown_in_front_of_its_document_and_counts(store, model):
    store.add(reports(hidden_keys=("year",)))
    question = "What was the revenue of Turku?"
    bare, shown = (store.select(question, budget=64, show_metadata=each) for each in (False, True))
    assert not any(node.header for node in bare.nodes)
    assert shown.kv_entries <= 64
    headers = [node for node in shown.nodes if node.header]
    assert [node.text for node in headers] == [f"town: {id}\n" for id in shown.doc_ids]
    assert "town: Turku\n" in shown.text and "2022" not in shown.text
    assert shown.kv_entries == sum(node.kv_entries for node in shown.nodes)
    context = shown.key_values()
    places = torch.cat(list(context.places))
    in_order = model.tokenizer.decode(context.token_ids[places.argsort()])
    best_document = in_order[in_order.rindex("town:") :]
    assert best_document.startswith("town: Turku\nRevenue")  # read last, next to the question


def test_a_selection_of_spans_shows_headers_where_it_is_asked_to(store):
    store.add(reports())
    spans = [("Visby", 0, 20), ("Bergen", 0, 20)]
    assert [node.text for node in store.selection_from(spans).nodes if node.header] == []
    selection = store.selection_from(spans, show_metadata=True)
    headers = [node.text for node in selection.nodes if node.header]
    assert headers == ["town: Visby\nyear: 2021\n", "town: Bergen\nyear: 2023\n"]
    kept = selection.subset([node for node in selection.nodes if node.doc_id == "Bergen" and not node.header])
    assert [node.text for node in kept.nodes if node.header] == ["town: Bergen\nyear: 2023\n"]


def test_documents_that_have_nothing_to_show_have_no_header(store):
    store.add([Document("The gate opens at six.", "gate"), *reports(hidden_keys=("town", "year"))])
    assert not any(node.header for node in store.select("When?", budget=512, show_metadata=True).nodes)


def test_the_keys_and_values_of_a_header_do_not_outlive_it(store, path):
    store.add(reports())
    store.select("Turku", budget=512, show_metadata=True).key_values()
    kept = {file.name for file in (path / "kv").rglob("*") if file.is_file()}
    store.update("Turku", metadata={"town": "Malmö"})
    assert len(kept - {file.name for file in (path / "kv").rglob("*") if file.is_file()}) == 1
    store.delete(store.ids())
    assert not [file for file in (path / "kv").rglob("*.safetensors")]
