"""What cannot be stored or opened is refused by name, with what, where and the mend, and nothing stored is lost."""

import copy
import itertools
import json
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from shared_context import (
    Document,
    SharedLLMContextStore,
    SharedLLMModel,
    StoreConfig,
    TreeConfig,
    errors,
)
from shared_context.errors import StoreUnavailableError
from shared_context.store.sqlite_file import FILE

QUERY = "When does the last ferry to Holm leave on Sundays?"


@pytest.fixture
def unharmed(filled, documents):
    """A store with three documents, which must all be there, and be found, when the test ends."""
    yield filled
    assert list(filled) == list(documents)
    assert "Sundays" in filled.select(QUERY, budget=64).text
    filled.add("One more.", id="one more")
    assert len(filled) == 4


# Documents


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "empty"),
        (" \n\t\u00a0\u2003", "blank"),
        ("lamp\0oil", "NUL"),
        ("lamp \ud83d", "surrogate"),
        (b"bytes", "bytes"),
        (None, "NoneType"),
    ],
)
def test_a_text_that_cannot_be_stored(unharmed, text, match):
    with pytest.raises(errors.DocumentError, match=match) as caught:
        unharmed.add(Document(text, "bad"))
    assert "'bad'" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty"),
        (b"\r\n  \r\n", "blank"),
        (b"text\x00more", "binary"),
        (b"%PDF-1.7 text", "PDF"),
        (b"caf\xe9", "not UTF-8: byte 3 is 0xe9"),
        (b"\xff\xfet\x00e\x00", "UTF-16"),
    ],
)
def test_a_file_that_cannot_be_stored(unharmed, tmp_path, content, match):
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(errors.DocumentError, match=match) as caught:
        unharmed.add(file)
    assert file.as_posix() in str(caught.value)


def test_a_path_that_leads_nowhere_and_a_folder_without_texts(unharmed, tmp_path):
    with pytest.raises(errors.DocumentError, match="no file or folder"):
        unharmed.add(tmp_path / "missing.txt")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(errors.DocumentError, match="no text file"):
        unharmed.add(tmp_path / "pictures")


def test_an_id_that_is_taken(unharmed):
    with pytest.raises(errors.DuplicateDocumentError, match="'lamp' is stored already.*update"):
        unharmed.add("Another lamp.", id="lamp")


@pytest.mark.parametrize("id", ["", " ", "a\nb", "x" * 513, 5])
def test_an_id_that_names_nothing(unharmed, id):
    with pytest.raises(errors.DocumentError, match="id"):
        unharmed.add(Document("text", id))


def test_an_unknown_id(unharmed):
    uses = [
        lambda: unharmed.get("nobody"),
        lambda: unharmed.update("nobody", "text"),
        lambda: unharmed.update("nobody", metadata={}),
        lambda: unharmed.append("nobody", "text"),
        lambda: unharmed.delete("nobody"),
        lambda: unharmed.delete(["lamp", "nobody"]),
        lambda: unharmed.select(QUERY, doc_ids=["nobody"]),
        lambda: unharmed.retrieve(QUERY, doc_ids=["nobody"]),
        lambda: unharmed.get(None),
    ]
    for use in uses:
        with pytest.raises(errors.DocumentNotFoundError, match="No document has the id"):
            use()


def test_a_batch_with_bad_ones_says_exactly_which_and_stores_nothing(unharmed, tmp_path):
    (tmp_path / "photo.txt").write_bytes(b"\xff\xd8\xff\xe0")
    batch = [
        Document("A good one.", "good"),
        Document("", "empty"),
        Document("The lamp again.", "lamp"),
        Document("Another good one.", "good"),
        Document("metadata", "set", {"a": {1}}),
        tmp_path / "photo.txt",
        Document("  "),
        5,
        Document("The last good one.", "last"),
    ]
    with pytest.raises(errors.BatchError, match="7 of 9") as caught:
        unharmed.add(batch)
    failures = caught.value.failures
    assert {name: type(error) for name, error in failures.items()} == {
        "empty": errors.UnreadableError,
        "lamp": errors.DuplicateDocumentError,
        "good": errors.DuplicateDocumentError,
        "set": errors.DocumentError,
        (tmp_path / "photo.txt").as_posix(): errors.UnreadableError,
        "#6": errors.UnreadableError,
        "#7": errors.DocumentError,
    }
    assert "good" not in unharmed


def test_a_source_that_fails_half_way_stores_nothing(unharmed):
    def source():
        yield Document("A good one.", "good")
        raise RuntimeError("the network is down")

    with pytest.raises(RuntimeError, match="network"):
        unharmed.add(source())


def test_a_progress_callback_that_fails_stores_nothing(unharmed):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unharmed.add("text", id="good", progress=stop)


# Large ones


def test_a_line_of_50_megabytes_is_refused_at_once_with_the_setting_that_allows_it(unharmed, tmp_path):
    text = "x" * 50_000_000
    (tmp_path / "line.txt").write_text(text)
    began = time.perf_counter()
    for source in (Document(text, "line"), tmp_path / "line.txt"):
        with pytest.raises(errors.DocumentError, match="50,000,000.*max_document_bytes"):
            unharmed.add(source)
    with pytest.raises(errors.DocumentError, match="max_document_bytes"):
        unharmed.update("lamp", text)
    with pytest.raises(errors.DocumentError, match="max_document_bytes"):
        unharmed.append("lamp", text)
    assert time.perf_counter() - began < 5


def test_a_document_may_not_grow_beyond_the_limit(open_store, path):
    store = open_store(path, config=StoreConfig(tree=TreeConfig(chunk_size=64, height=2), max_document_bytes=40))
    store.add("é" * 20, id="full")
    with pytest.raises(errors.DocumentError, match="42 bytes"):
        store.append("full", "é")
    assert store.get("full").text == "é" * 20


@pytest.mark.parametrize("letters", ["x", "x7 é", "👨‍👩‍👧"], ids=["one word", "words", "emoji"])
def test_a_long_line_is_tokenized_in_time_that_grows_with_its_length(model, letters):
    def seconds(length: int) -> float:
        text = (letters * length)[:length]
        began = time.perf_counter()
        model.tokenize(text)
        return time.perf_counter() - began

    seconds(10_000)
    short, long = seconds(100_000), seconds(800_000)
    assert long < 40 * short  # eight times as long; quadratic would be 64


def test_a_document_of_more_tokens_than_a_row_holds_is_refused_before_any_computing(unharmed, monkeypatch):
    monkeypatch.setattr("shared_context.store.document_store.MAX_KEPT_BYTES", 100_000)
    monkeypatch.setattr(unharmed.model.compressor, "first_layer_states", lambda chunks: pytest.fail("computed"))
    with pytest.raises(errors.DocumentError, match="1,500 tokens.*split it"):
        unharmed.add("0" * 1500, id="long")
    with pytest.raises(errors.BatchError) as caught:
        unharmed.add([Document("0" * 1500, "long"), Document("fine", "short")], on_error="raise")
    assert set(caught.value.failures) == {"long"}
    monkeypatch.undo()


def test_a_full_disk_is_named_and_nothing_of_the_change_is_stored(unharmed):
    connection = unharmed._database._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    changes = [
        lambda: unharmed.add([Document("A note that fits.", "small"), Document("A long one. " * 4000, "large")]),
        lambda: unharmed.update("lamp", "The lamp. " * 4000),
        lambda: unharmed.append("lamp", "The lamp. " * 4000),
        lambda: unharmed.update("lamp", metadata={"a": "b" * 40_000}),
    ]
    for change in changes:
        with pytest.raises(StoreUnavailableError, match="full.*Free some space"):
            change()
    connection.execute("PRAGMA max_page_count = 1000000")


def test_what_is_larger_than_a_row_is_named_and_nothing_of_the_change_is_stored(unharmed):
    connection = unharmed._database._connection
    limit = connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)  # stands for the billion that SQLite has
    try:
        for change in (
            lambda: unharmed.add("A note.", id="i", metadata={"a": "x" * 200_000}),
            lambda: unharmed.update("lamp", metadata={"a": "x" * 200_000}),
            lambda: unharmed.conversation("c").append("user", "x" * 200_000),
        ):
            with pytest.raises(errors.DocumentError, match="larger than SQLite keeps in one row.*part it"):
                change()
    finally:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limit)


# Folders


def refused(model, path, error=errors.StoreFormatError, **options) -> str:
    with pytest.raises(error) as caught:
        SharedLLMContextStore(model, path, **{"embedder": None, **options})
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_path_that_is_a_file(model, tmp_path):
    (tmp_path / "handbook.md").write_text("x")
    assert "is a file" in refused(model, tmp_path / "handbook.md")


def test_a_folder_with_other_things(model, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    assert "not a store" in refused(model, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_store_of_a_newer_format(model, filled, path):
    filled.close()
    connection = sqlite3.connect(path / FILE)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "99" in refused(model, path)


@pytest.mark.parametrize("key", ["about", "codec"])
def test_a_store_whose_meta_cannot_be_read(model, filled, path, key):
    filled.close()
    connection = sqlite3.connect(path / FILE)
    connection.execute("UPDATE meta SET value = x'7b' WHERE key = ?", (key,))
    connection.commit()
    connection.close()
    assert "damaged" in refused(model, path)


def test_a_half_written_store(model, filled, path):
    filled.close()
    content = (path / FILE).read_bytes()
    for left in itertools.chain([0, 50, len(content) - 1], range(4096, len(content), len(content) // 6)):
        (path / FILE).write_bytes(content[:left])
        message = refused(model, path)
        assert "Delete the folder" in message or "Restore it" in message
    (path / FILE).write_bytes(content)
    with SharedLLMContextStore(model, path) as store:
        assert len(store) == 3


def test_a_store_that_could_not_be_made_leaves_nothing_behind(model, tmp_path, monkeypatch):
    def unreachable(*_):
        raise errors.ModelNotFoundError("no network")

    monkeypatch.setattr("shared_context.store.opening.load_default_embedder", unreachable)
    with pytest.raises(errors.ModelNotFoundError):
        SharedLLMContextStore(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with SharedLLMContextStore(model, tmp_path / "new", embedder=None) as store:
        assert len(store) == 0


# Models and settings


@pytest.fixture(scope="module")
def tiny(make_small_model) -> SharedLLMModel:
    """A random model with the default model's tokenizer; its states are narrower than a code."""
    return make_small_model()


def test_another_model_is_refused_and_both_are_named(filled, tiny, path):
    message = refused(tiny, path, errors.ModelMismatchError)
    for model in (filled.model, tiny):
        assert model.name in message
        assert model.fingerprint in message
    assert len(filled) == 3


def test_other_weights_under_the_same_name_are_another_model(open_store, tiny, tmp_path):
    with SharedLLMContextStore(tiny, tmp_path / "tiny", embedder=None) as store:
        store.add("The lamp is lit.", id="lamp")
    changed = copy.deepcopy(tiny.hf_model)
    with torch.no_grad():
        changed.model.layers[1].mlp.down_proj.weight.mul_(1.5)
    other = SharedLLMModel(changed, tiny.tokenizer, name=tiny.name)
    refused(other, tmp_path / "tiny", errors.ModelMismatchError)
    same = SharedLLMModel(copy.deepcopy(tiny.hf_model), tiny.tokenizer, name="renamed")
    with SharedLLMContextStore(same, tmp_path / "tiny") as store:
        assert store.select("lamp?", budget=10)


def test_a_model_narrower_than_the_codes_that_were_asked_for(tiny, documents, tmp_path):
    for _ in range(2):
        with SharedLLMContextStore(tiny, tmp_path / "tiny", embedder=None) as store:
            if not len(store):
                store.add(documents)
            store.append("lamp", " It is lit.")
            assert "".join(n.text for n in store.select(None, ratio=1, doc_ids=["ferry"]).nodes) == documents[1].text
            assert {node.doc_id for node in store.retrieve(QUERY, k=100)} == set(store.ids())


def test_a_model_that_computes_no_numbers_is_refused(make_small_model):
    broken = make_small_model()
    with torch.no_grad():
        broken.hf_model.model.layers[0].mlp.down_proj.weight.fill_(float("inf"))
    with pytest.raises(errors.UnsupportedModelError, match="small-0.*infinities or NaN"):
        SharedLLMContextStore(broken, embedder=None)


class Letters:
    """An embedder of one's own."""

    def __init__(self, name: str, dimension: int):
        self.name, self.dimension = name, dimension

    def encode(self, texts):
        rows = torch.tensor([[text.count(chr(97 + i)) + 1.0 for i in range(self.dimension)] for text in texts])
        return torch.nn.functional.normalize(rows, dim=1).numpy()


def test_another_embedder_is_refused_and_both_are_named(model, open_store, tmp_path):
    folder = tmp_path / "letters"
    open_store(folder, embedder=Letters("letters", 5)).add("The lamp is lit.", id="lamp")
    for embedder in (Letters("other", 5), Letters("letters", 6), None):
        message = refused(model, folder, errors.ModelMismatchError, embedder=embedder)
        assert "letters" in message
        assert str(embedder.name if embedder else None) in message
    assert "embedder=" in refused(model, folder, errors.ModelMismatchError, embedder="auto")
    assert open_store(folder, embedder=Letters("letters", 5)).select("lamp?", policy="embedding").doc_ids == ["lamp"]


def test_a_store_without_an_embedder_cannot_be_opened_with_one(model, filled, path):
    assert "None" in refused(model, path, errors.ModelMismatchError, embedder=Letters("letters", 5))


@pytest.mark.parametrize(
    "config",
    [
        StoreConfig(),
        StoreConfig(tree=TreeConfig(chunk_size=64, height=3)),
        StoreConfig(tree=TreeConfig(chunk_size=64, height=2), code_size=32),
    ],
)
def test_another_chunk_size_height_or_code_size_is_refused(model, filled, path, config):
    message = refused(model, path, errors.ConfigError, config=config)
    assert str(filled.config.fixed()) in message
    assert str(config.fixed()) in message


def test_settings_that_nothing_stored_depends_on_may_differ(model, filled, path):
    config = StoreConfig(tree=TreeConfig(chunk_size=64, height=2, coarse=(16, 8, 4), fine=2), neighbour_weight=0.0)
    with SharedLLMContextStore(model, path, config=config) as store:
        assert {n.ratio for n in store.select(QUERY, budget=60).nodes} > {2}


def test_what_the_store_was_made_with_is_readable_json(filled, path):
    connection = sqlite3.connect(path / FILE)
    about = json.loads(connection.execute("SELECT value FROM meta WHERE key = 'about'").fetchone()[0])
    connection.close()
    assert about["model"] == filled.model.name
    assert about["config"]["tree"]["chunk_size"] == 64


def test_settings_may_be_numpys_numbers(model, tmp_path):
    tree = TreeConfig(
        chunk_size=np.int64(64), height=np.int32(2), coarse=np.array([8, 4, 2]).tolist(), fine=np.uint8(1)
    )
    config = StoreConfig(tree, floor=np.float32(0.5), lead_in=np.int64(16), code_size=np.int16(32))
    with SharedLLMContextStore(model, tmp_path / "store", config=config, embedder=None) as store:
        store.limit_kv(np.int64(10_000))
        store.add("The lamp is lit at dusk.", id="lamp")
    with SharedLLMContextStore(model, tmp_path / "store", embedder=None) as store:
        assert store.config.cache.disk_bytes == 10_000 and store.config.floor == 0.5
        assert "dusk" in store.select("When is the lamp lit?", budget=np.int64(64), min_score=np.float32(0)).text


@pytest.mark.parametrize("name", ["store\ud800", "store\0"])
def test_a_path_that_no_folder_can_have_is_named(model, tmp_path, name):
    with pytest.raises(errors.ConfigError, match="path="):
        SharedLLMContextStore(model, f"{tmp_path}/{name}", embedder=None)


def test_a_path_may_be_a_string(model, path):
    with SharedLLMContextStore(model, str(path)) as store:
        assert store.path == Path(path)


def test_chunks_that_the_model_cannot_read_are_refused(make_small_model, tmp_path):
    narrow = make_small_model(window=1024)
    with pytest.raises(errors.ConfigError, match=r"chunk_size=1024: .* 1[01]\d\d, and small-0 reads 1024.*TreeConfig"):
        SharedLLMContextStore(narrow, tmp_path / "store", embedder=None)
    assert not (tmp_path / "store").exists()
    config = StoreConfig(tree=TreeConfig(chunk_size=512, height=3))
    SharedLLMContextStore(narrow, tmp_path / "store", config=config, embedder=None).close()
    with SharedLLMContextStore(narrow, tmp_path / "store", embedder=None) as store:
        store.add("The gate opens at six. " * 200, id="gate")
        store.warm()
