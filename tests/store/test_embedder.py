"""The default embedder, with its real weights."""

import json
import shutil

import numpy as np
import pytest
import torch

from shared_context import SharedLLMContextStore
from shared_context.errors import ModelNotFoundError
from shared_context.store.embedder import (
    DEFAULT_EMBEDDER,
    Embedder,
    SentenceTransformerEmbedder,
    load_default_embedder,
    resolve_default_embedder,
)


@pytest.fixture(scope="module")
def embedder():
    return load_default_embedder()


def test_rows_have_unit_length(embedder):
    rows = embedder.encode(["When does the night shift start?", "At ten.", "", "\U0001f600 שלום\r\n"])
    assert rows.shape == (4, embedder.dimension) == (4, 384)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_no_texts_give_no_rows(embedder):
    rows = embedder.encode([])
    assert rows.shape == (0, 384)
    assert rows.dtype == np.float32


def test_the_passage_that_answers_is_nearest(embedder):
    passages = ["The night shift starts at ten in the evening.", "Helmets are blue.", "Lunch is served at noon."]
    scores = embedder.encode(passages) @ embedder.encode(["When does the night shift start?"])[0]
    assert scores.argmax() == 0


def test_rows_keep_the_order_of_the_texts_whatever_their_length():
    embedder = SentenceTransformerEmbedder(dtype=torch.float32)
    texts = ["word " * count for count in range(1, 80, 2)]
    together = embedder.encode(texts)
    alone = np.concatenate([embedder.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_in_the_processors_own_type_it_says_the_same(embedder):
    exact = SentenceTransformerEmbedder(dtype=torch.float32)
    texts = ["When does the night shift start?", "At ten.", "The ferry to Holm leaves from berth 4. " * 8]
    assert (embedder.encode(texts) * exact.encode(texts)).sum(axis=1).min() > 0.99


def test_a_long_text_is_cut_at_256_word_pieces(embedder):
    long = embedder.encode(["shift " * 300, "shift " * 300 + "volcano " * 300])
    np.testing.assert_allclose(long[0], long[1], atol=1e-2)


def test_encoding_prints_nothing(embedder, capfd):
    embedder.encode(["one", "two"])
    assert capfd.readouterr() == ("", "")


def test_its_name_is_the_same_however_it_was_asked_for(embedder):
    assert isinstance(embedder, Embedder)
    assert embedder.name == DEFAULT_EMBEDDER
    assert SentenceTransformerEmbedder("sentence-transformers/all-MiniLM-L6-v2").name == DEFAULT_EMBEDDER


def test_a_folder_gives_the_same_embeddings_under_its_own_name(embedder):
    folder = resolve_default_embedder()
    other = SentenceTransformerEmbedder(folder, device="cpu")
    assert other.name == folder.resolve().name
    np.testing.assert_allclose(other.encode(["one"]), embedder.encode(["one"]), atol=1e-5)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        SentenceTransformerEmbedder(tmp_path / "nowhere")


def test_queries_and_documents_are_embedded_behind_the_prompts_of_the_model(embedder, tmp_path):
    folder = shutil.copytree(resolve_default_embedder(), tmp_path / "asymmetric")
    settings = folder / "config_sentence_transformers.json"
    known = json.loads(settings.read_text()) if settings.exists() else {}
    settings.write_text(json.dumps({**known, "prompts": {"query": "query: ", "passage": "passage: "}}))
    prompted = SentenceTransformerEmbedder(folder)
    text = "The night shift starts at ten."
    queries, documents = embedder.encode([f"query: {text}"]), embedder.encode([f"passage: {text}"])
    np.testing.assert_allclose(prompted.encode_query([text]), queries, atol=1e-2)
    np.testing.assert_allclose(prompted.encode([text]), documents, atol=1e-2)
    assert prompted.name == "asymmetric behind 'passage: '"


def test_prompts_may_be_given_for_a_model_that_names_none(embedder):
    prompted = SentenceTransformerEmbedder(prompts={"query": "query: ", "document": ""})
    np.testing.assert_allclose(prompted.encode_query(["ten"]), embedder.encode(["query: ten"]), atol=1e-2)
    np.testing.assert_allclose(prompted.encode(["ten"]), embedder.encode(["ten"]), atol=1e-2)
    assert prompted.name == DEFAULT_EMBEDDER


def test_the_default_embedder_is_loaded_where_the_model_is(model, tmp_path, monkeypatch):
    asked = []

    def load(device):
        asked.append(torch.device(device))
        return load_default_embedder(device)

    for module in ("opening", "about"):
        monkeypatch.setattr(f"shared_context.store.{module}.load_default_embedder", load)
    for _ in range(2):
        SharedLLMContextStore(model, tmp_path / "store").close()
    assert asked == [model.device] * 2
