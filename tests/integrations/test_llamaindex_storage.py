"""What LlamaIndex keeps its data in, over a context store: index, docstore, vector store and what is built on them."""

import asyncio
import json
from datetime import date
from pathlib import Path

import pytest
from llama_index.core import StorageContext, SummaryIndex, VectorStoreIndex, load_index_from_storage
from llama_index.core.extractors import (
    BaseExtractor,
    KeywordExtractor,
    QuestionsAnsweredExtractor,
    SummaryExtractor,
    TitleExtractor,
)
from llama_index.core.indices.base import BaseIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters, SimpleVectorStore
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from shared_context import SharedLLMContextStore
from shared_context.errors import (
    ConfigError,
    DocumentError,
    DocumentNotFoundError,
    DuplicateDocumentError,
    QueryError,
    StoreFormatError,
)
from shared_context.integrations.llamaindex import (
    SharedContextDocumentStore,
    SharedContextEmbedding,
    SharedContextIndex,
    SharedContextVectorStore,
    SharedLLM,
)

TEXTS = {
    "bridge": "The bridge over the gorge is closed to carts whenever the wind sock stands level with its mast.",
    "kiln": "The kiln is fired on the first Monday of each month and cools for three days behind a locked door.",
    "hives": "The hives stand under the lime trees; honey is taken twice a year, in June and late in August.",
}
QUESTION = "When is honey taken from the hives?"


def documents():
    return [Document(text=text, id_=name, metadata={"place": name}) for name, text in TEXTS.items()]


@pytest.fixture(scope="module")
def llm(make_small_model):
    return SharedLLM(model=make_small_model(), max_new_tokens=4)


@pytest.fixture
def store(llm):
    with SharedLLMContextStore(llm.shared_model, embedder=None) as store:
        yield store


@pytest.fixture
def index(llm, store):
    return SharedContextIndex.from_documents(documents(), llm=llm, store=store)


class Lengths(BaseExtractor):
    """Writes into each node's metadata how long it is, as a title or keyword extractor would its own."""

    async def aextract(self, nodes):
        return [{"length": len(node.text)} for node in nodes]


# ------------------------------------------------------------------------------------------------------------- index


def test_it_is_an_index_like_others(index, llm):
    assert isinstance(index, BaseIndex)
    index.set_index_id("estate")
    assert index.index_id == index.index_struct.index_id == "estate"
    assert index.storage_context.index_store.get_index_struct("estate") is not None
    index.summary = "The estate."
    assert index.summary == "The estate."
    assert index.ref_doc_info["kiln"].node_ids == ["kiln"]
    assert index.ref_doc_info["kiln"].metadata == {"place": "kiln"}


def test_nodes_are_indexed_inserted_and_deleted(llm):
    nodes = [TextNode(text=text, id_=name) for name, text in TEXTS.items()]
    index = SharedContextIndex(nodes[:1], llm, embedder=None)
    index.insert_nodes(nodes[1:2])
    asyncio.run(index.ainsert_nodes(nodes[2:]))
    assert set(index.ref_doc_info) == set(TEXTS)
    with pytest.raises(DuplicateDocumentError):
        index.insert_nodes(nodes[:1])
    (best,) = index.as_retriever(similarity_top_k=1).retrieve(QUESTION)
    with pytest.raises(ConfigError, match=f"passage of '{best.node.ref_doc_id}'.*delete_ref_doc"):
        index.delete_nodes([best.node_id])
    index.delete_nodes(["bridge"])
    asyncio.run(index.adelete_nodes(["kiln"]))
    assert set(index.ref_doc_info) == {"hives"}
    with pytest.raises(DocumentNotFoundError):
        index.delete_nodes(["bridge"])


def test_nodes_of_one_document_are_found_and_deleted_by_it(llm, store):
    pieces = SentenceSplitter(chunk_size=24, chunk_overlap=0).get_nodes_from_documents(
        [Document(text="\n\n".join(TEXTS.values()), id_="estate", metadata={"year": 1911})]
    )
    assert len(pieces) > 2
    index = SharedContextIndex(pieces, llm, store=store)
    assert index.ref_doc_info["estate"].node_ids == [piece.node_id for piece in pieces]
    found = index.as_retriever().retrieve(QUESTION)
    assert {scored.node.ref_doc_id for scored in found} == {"estate"}
    assert found[0].metadata.keys() == {"year", "level", "ratio", "kv_entries"}
    assert index.as_retriever(doc_ids=["estate"]).retrieve(QUESTION) == found
    assert index.as_retriever(doc_ids=[]).retrieve(QUESTION) == []
    assert [index.docstore.get_node(piece.node_id) for piece in pieces] == pieces
    response = index.as_query_engine().query(QUESTION)
    assert len(response.source_nodes) == len(found)
    index.delete_ref_doc("estate")
    assert len(store) == 0


class Note(TextNode):
    """A class of somebody's own."""

    by: str = "nobody"

    @classmethod
    def class_name(cls):
        return "Note"


NODES = {
    "loose": TextNode(text="Loose.", metadata={"places": ["gorge", {"bank": "left"}]}),
    "excluding": TextNode(text="Hidden.", metadata={"place": "kiln"}, excluded_llm_metadata_keys=["place"]),
    "related": TextNode(
        text="Between.",
        start_char_idx=3,
        end_char_idx=11,
        relationships={
            NodeRelationship.PREVIOUS: RelatedNodeInfo(node_id="before", metadata={"page": 1}, hash="abc"),
            NodeRelationship.CHILD: [RelatedNodeInfo(node_id="a", node_type=ObjectType.TEXT)],
        },
    ),
    "of a document": TextNode(
        text="A piece.", relationships={NodeRelationship.SOURCE: Document(text="Whole.").as_related_node_info()}
    ),
    "laid out": TextNode(text="<b>", mimetype="text/html", text_template="{content}", metadata_separator="; "),
    "index node": IndexNode(text="A summary.", index_id="other"),
    "node": Node(text_resource=MediaResource(text="Of several media.")),
    "document": Document(text="Whole.", metadata={"place": "hives"}),
    "file": Document(text_resource=MediaResource(text="A file.", path=Path("lamp.txt"), mimetype="text/plain")),
    "derived": Document(text="Later.", relationships={NodeRelationship.PREVIOUS: RelatedNodeInfo(node_id="earlier")}),
}


@pytest.mark.parametrize("name", NODES)
def test_what_goes_in_comes_back_the_same(store, name):
    node = NODES[name]
    docstore, vectors = SharedContextDocumentStore(store), SharedContextVectorStore(store)
    docstore.add_documents([node])
    (again,) = vectors.get_nodes()
    assert docstore.get_document(node.node_id) == again == node
    assert type(again) is type(node) and again.hash == node.hash
    vectors.add([again])
    assert vectors.get_nodes() == [node]
    found = SharedContextIndex.from_store(store).as_retriever(similarity_top_k=1).retrieve(node.get_content())
    assert found[0].metadata.keys() == {*node.metadata, "level", "ratio", "kv_entries"}


def test_a_node_of_a_class_of_ones_own_comes_back_as_what_it_derives_from(store):
    docstore = SharedContextDocumentStore(store)
    docstore.add_documents([Note(text="Mind the wind.", id_="note", by="Ann")])
    assert docstore.get_document("note") == TextNode(text="Mind the wind.", id_="note")


def test_a_node_with_a_picture_is_refused_whatever_its_class(store):
    for node in (ImageNode(text="A kiln.", image="aGk="), ImageDocument(text="A kiln.", image=b"kiln")):
        with pytest.raises(DocumentError, match="holds image"):
            SharedContextVectorStore(store).add([node])
    assert len(store) == 0


def test_dates_and_paths_among_metadata_are_stored_as_text_and_are_no_change(llm, store):
    documents = [Document(text="Rye bread.", id_="bread", metadata={"day": date(2024, 5, 1), "from": Path("/srv")})]
    index = SharedContextIndex.from_documents(documents, llm, store=store)
    assert index.docstore.get_document("bread").metadata == {"day": "2024-05-01", "from": "/srv"}
    assert index.as_retriever(filters={"day": {"$lte": date(2024, 5, 1)}}).retrieve("bread")
    assert index.refresh_ref_docs(documents) == [False]
    documents[0].metadata["day"] = date(2024, 5, 2)
    assert index.refresh_ref_docs(documents) == [True]


def test_a_pipeline_leaves_alone_what_has_not_changed_of_loose_nodes(store):
    nodes = [TextNode(text=text, id_=name, metadata={"place": name}) for name, text in TEXTS.items()]
    pipeline = IngestionPipeline(
        transformations=[Lengths(in_place=False)],
        docstore=SharedContextDocumentStore(store),
        docstore_strategy=DocstoreStrategy.DUPLICATES_ONLY,
    )
    assert len(pipeline.run(nodes=nodes)) == 3
    nodes[1].set_content("The kiln is cold.")
    assert [node.node_id for node in pipeline.run(nodes=nodes)] == ["kiln"]


def test_what_other_indexes_take_is_refused_by_the_name_of_its_like(llm, store):
    for name, likeness in {
        "embed_model": "embedder=",
        "objects": "VectorStoreIndex",
        "vector_store": "from_vec",
    }.items():
        with pytest.raises(ConfigError, match=f"{name}=.*{likeness}"):
            SharedContextIndex.from_documents(documents(), llm=llm, **{name: object()})
    with pytest.raises(TypeError, match="tranformations"):
        SharedContextIndex.from_documents(documents(), llm=llm, tranformations=[])
    with pytest.raises(ConfigError, match="from_store"):
        SharedContextIndex(store)
    with pytest.raises(ConfigError, match="SimpleVectorStore.*SharedContextVectorStore"):
        SharedContextIndex.from_vector_store(SimpleVectorStore(), llm)


# --------------------------------------------------------------------------------------------------- transformations


def test_extractors_run_and_documents_stay_whole(llm, store):
    index = SharedContextIndex.from_documents(documents(), llm=llm, store=store, transformations=[Lengths()])
    assert index.ref_doc_info["hives"].metadata == {"place": "hives", "length": len(TEXTS["hives"])}
    assert index.docstore.get_document("hives").text == TEXTS["hives"]
    long = index.as_retriever(filters={"length": {"$gt": len(TEXTS["bridge"])}}).retrieve(QUESTION)
    assert {scored.node.ref_doc_id for scored in long} == {n for n, t in TEXTS.items() if len(t) > len(TEXTS["bridge"])}
    assert index.refresh_ref_docs(documents()) == [False, False, False]
    changed = documents()
    changed[1].set_content("The kiln is cold.")
    assert index.refresh_ref_docs(changed) == [False, True, False]
    assert index.ref_doc_info["kiln"].metadata["length"] == len("The kiln is cold.")
    with pytest.raises(DuplicateDocumentError):
        index.insert(documents()[0])


@pytest.mark.parametrize(
    ("extractor", "key"),
    [
        (KeywordExtractor, "excerpt_keywords"),
        (QuestionsAnsweredExtractor, "questions_this_excerpt_can_answer"),
        (SummaryExtractor, "section_summary"),
        (TitleExtractor, "document_title"),
    ],
)
def test_llamaindexs_extractors_read_documents_that_stay_whole(llm, store, extractor, key):
    given = documents()[:2]
    index = SharedContextIndex.from_documents(
        given, llm=llm, store=store, transformations=[extractor(llm=llm, show_progress=False)]
    )
    assert sorted(index.ref_doc_info) == sorted(document.id_ for document in given)
    for document in given:
        assert key in index.ref_doc_info[document.id_].metadata
        assert isinstance(index.docstore.get_document(document.id_), Document)
        assert document.metadata == {"place": document.id_}, "what was handed over stays as it was"


def test_what_is_no_document_is_said_in_words(llm, index):
    for wrong, said in (
        ("a text", "documents is a str"),
        (documents()[0], "documents is a Document"),
        (None, "documents is a NoneType"),
        (["a text"], r"documents\[0\] is a str"),
    ):
        with pytest.raises(DocumentError, match=said):
            SharedContextIndex.from_documents(wrong, llm=llm)
        with pytest.raises(DocumentError, match=said):
            index.refresh_ref_docs(wrong)
    for change in (index.insert, index.update_ref_doc):
        with pytest.raises(DocumentError, match=r"documents\[0\] is a str: give a LlamaIndex document"):
            change("a text")
    with pytest.raises(DocumentError, match=r"documents\[0\] is a dict"):
        index.insert_nodes([{"text": "a text"}])


def test_pieces_of_a_splitter_are_replaced_with_their_document(llm, store):
    splitter = SentenceSplitter(chunk_size=24, chunk_overlap=0)
    estate = Document(text="\n\n".join(TEXTS.values()), id_="estate")
    index = SharedContextIndex.from_documents([estate], llm=llm, store=store, transformations=[splitter])
    before = index.ref_doc_info["estate"].node_ids
    assert len(before) == len(store) > 2
    index.update_ref_doc(Document(text=TEXTS["kiln"], id_="estate"))
    after = index.ref_doc_info["estate"].node_ids
    assert len(after) == len(store) < len(before) and not set(after) & set(before)
    with pytest.raises(DocumentError):
        index.update_ref_doc(Document(text="no\0t\0\0ext\0" * 3, id_="estate"))
    assert index.ref_doc_info["estate"].node_ids == after, "what cannot be stored must not cost what is"


# --------------------------------------------------------------------------------------------------- storage context


def test_an_index_is_persisted_as_llamaindex_does(index, llm, tmp_path):
    index.storage_context.persist(tmp_path / "storage")
    index.insert(Document(text="The ferry is late.", id_="ferry"))
    index.storage_context.persist(tmp_path / "storage")
    again = SharedContextIndex.load(tmp_path / "storage", llm)
    assert again.index_id == index.index_id
    assert set(again.ref_doc_info) == {*TEXTS, "ferry"}
    assert again.store.get("hives").text == TEXTS["hives"]
    assert sorted(p.name for p in (tmp_path / "storage").iterdir() if p.name.startswith(".")) == []


def test_an_index_is_loaded_as_llamaindex_does(index, llm, tmp_path):
    index.storage_context.persist(tmp_path / "storage")
    again = load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path / "storage")), llm=llm)
    assert isinstance(again, SharedContextIndex) and again.index_id == index.index_id
    assert set(again.ref_doc_info) == set(TEXTS)
    again.insert(Document(text="The ferry is late.", id_="ferry"))
    assert "ferry" in again.store
    again.store.close()
    assert load_index_from_storage(index.storage_context, llm=llm).store is index.store
    (tmp_path / "storage").rename(tmp_path / "moved")
    with pytest.raises(StoreFormatError, match=r"SharedContextIndex\.load\(persist_dir\)"):
        load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path / "moved")), llm=llm)
    assert set(SharedContextIndex.load(tmp_path / "moved", llm).ref_doc_info) == {*TEXTS, "ferry"}


def test_an_index_is_loaded_from_a_storage_context_that_other_indexes_share(llm, tmp_path):
    context = StorageContext.from_defaults()
    context.docstore.add_documents(documents())
    summary = SummaryIndex(documents(), storage_context=context)
    index = SharedContextIndex(documents(), llm, storage_context=context, embedder=None)
    for folder in ("once", "again"):
        context.persist(tmp_path / folder)
        context = StorageContext.from_defaults(persist_dir=str(tmp_path / folder))
        loaded = load_index_from_storage(context, index.index_id, llm=llm)
        assert set(loaded.ref_doc_info) == set(TEXTS)
        assert loaded.store.path == tmp_path / folder / "context_store"
        other = load_index_from_storage(context, summary.index_id)
        assert {scored.node_id for scored in other.as_retriever().retrieve(QUESTION)} == set(TEXTS)
        assert SharedContextIndex.load(tmp_path / folder, llm).index_id == index.index_id
    (tmp_path / "again" / "context_store__vector_store.json").unlink()
    with pytest.raises(StoreFormatError, match=r"SharedContextIndex\.load\(persist_dir\)"):
        load_index_from_storage(
            StorageContext.from_defaults(persist_dir=str(tmp_path / "again")), index.index_id, llm=llm
        )


def test_storage_contexts_bring_the_store_or_get_it(llm, store):
    vectors = SharedContextVectorStore(store)
    context = StorageContext.from_defaults(vector_store=vectors)
    index = SharedContextIndex.from_documents(documents(), llm=llm, storage_context=context)
    assert index.store is store
    assert set(store.ids()) == set(TEXTS)
    plain = StorageContext.from_defaults()
    other = SharedContextIndex.from_documents(documents()[:1], llm=llm, storage_context=plain, embedder=None)
    assert plain.vector_store.client is other.store
    assert plain.docstore.docs.keys() == {"bridge"}

    class Remote(BasePydanticVectorStore):
        """Any other vector store."""

        @property
        def client(self):
            return None

        def add(self, nodes, **kwargs):
            return []

        def delete(self, ref_doc_id, **kwargs):
            pass

        def query(self, query, **kwargs):
            return VectorStoreQueryResult(nodes=[])

    remote = StorageContext.from_defaults(vector_store=Remote(stores_text=True))
    with pytest.raises(ConfigError, match="not in a Remote.*SharedContextVectorStore"):
        SharedContextIndex.from_documents([], llm=llm, storage_context=remote)


# ---------------------------------------------------------------------------------------------------------- docstore


def test_the_docstore_has_the_documents_whole(index, store):
    docstore = index.docstore
    assert isinstance(docstore, SharedContextDocumentStore)
    assert {id: document.text for id, document in docstore.docs.items()} == TEXTS
    assert docstore.get_document("kiln").metadata == {"place": "kiln"}
    assert docstore.get_document_hash("kiln") == documents()[1].hash
    assert docstore.get_document_hash("none") is None
    assert docstore.get_all_document_hashes() == {d.hash: d.id_ for d in documents()}
    assert docstore.get_document("none", raise_error=False) is None
    for unknown in (docstore.get_document, docstore.get_node, docstore.delete_document, docstore.delete_ref_doc):
        with pytest.raises(ValueError, match="none"):  # what LlamaIndex's docstores raise, and its callers catch
            unknown("none")
        with pytest.raises(DocumentNotFoundError):
            unknown("none")
    assert [node.node_id for node in docstore.get_nodes(["kiln", "hives"])] == ["kiln", "hives"]
    docstore.add_documents([Document(text="The ferry is late.", id_="ferry")])
    docstore.delete_document("kiln")
    docstore.delete_ref_doc("bridge")
    assert set(store.ids()) == {"hives", "ferry"}
    assert docstore.document_exists("ferry") and not docstore.document_exists("kiln")

    async def the_same_without_blocking():
        await docstore.async_add_documents(documents()[:1])
        await docstore.adelete_document("ferry")
        return set(await docstore.aget_all_ref_doc_info()), await docstore.aget_document("bridge")

    ids, bridge = asyncio.run(the_same_without_blocking())
    assert ids == {"hives", "bridge"} and bridge.text == TEXTS["bridge"]


def test_a_document_beside_its_pieces_is_one_with_them(store):
    docstore, (whole, *_) = SharedContextDocumentStore(store), documents()
    piece = TextNode(text="The bridge is closed.", id_="piece")
    piece.relationships[NodeRelationship.SOURCE] = whole.as_related_node_info()
    docstore.add_documents([*documents(), piece])
    assert docstore.get_ref_doc_info("bridge").node_ids == ["bridge", "piece"]
    assert docstore.get_all_ref_doc_info()["bridge"] == docstore.get_ref_doc_info("bridge")
    assert docstore.get_document_hash("bridge") == whole.hash
    docstore.delete_ref_doc("bridge")
    assert store.ids() == ["kiln", "hives"]


# ------------------------------------------------------------------------------------------------------ vector store


def test_a_vector_store_index_works_over_whole_documents(store, llm):
    vectors, embedding = SharedContextVectorStore(store), SharedContextEmbedding(store)
    index = VectorStoreIndex.from_vector_store(vectors, embed_model=embedding, transformations=[embedding])
    for document in documents():
        index.insert(document)
    assert {document.id: document.text for document in store} == TEXTS
    found = index.as_retriever(similarity_top_k=2).retrieve(QUESTION)
    assert len(found) == 2 and found[0].score >= found[1].score
    for scored in found:
        node = scored.node
        assert TEXTS[node.ref_doc_id][node.start_char_idx : node.end_char_idx] == node.text
        assert f"place: {node.ref_doc_id}" in node.get_content(MetadataMode.LLM)
    only = MetadataFilters(filters=[MetadataFilter(key="place", operator=FilterOperator.EQ, value="kiln")])
    assert [s.node.ref_doc_id for s in index.as_retriever(filters=only).retrieve(QUESTION)] == ["kiln"]
    assert [s.node.ref_doc_id for s in index.as_retriever(doc_ids=["bridge"]).retrieve(QUESTION)] == ["bridge"]
    index.delete_ref_doc("bridge")
    asyncio.run(index.adelete_ref_doc("none such"))
    assert set(store.ids()) == {"kiln", "hives"}
    assert SharedContextIndex.from_vector_store(vectors, llm).store is store


def test_a_vector_store_keeps_the_contract_of_vector_stores(store):
    vectors = SharedContextVectorStore(store)
    assert vectors.add(documents()) == list(TEXTS)
    assert vectors.client is store and vectors.stores_text and not vectors.is_embedding_query
    assert json.loads(vectors.to_json())["class_name"] == "SharedContextVectorStore"
    result = vectors.query(VectorStoreQuery(query_str=QUESTION, similarity_top_k=3, node_ids=["hives", "kiln"]))
    assert {node.ref_doc_id for node in result.nodes} <= {"hives", "kiln"}
    assert len(result.nodes) == len(result.similarities) == len(result.ids)
    assert [node.text for node in vectors.get_nodes(["kiln"])] == [TEXTS["kiln"]]
    assert vectors.query(VectorStoreQuery(query_str=QUESTION, doc_ids=[])).nodes == []
    with pytest.raises(QueryError, match="query_str"):
        vectors.query(VectorStoreQuery(query_embedding=[1.0]))
    with pytest.raises(ConfigError, match="mmr.*default"):
        vectors.query(VectorStoreQuery(query_str=QUESTION, mode=VectorStoreQueryMode.MMR))
    with pytest.raises(ConfigError, match="clear"):
        vectors.delete_nodes()
    vectors.delete_nodes(["kiln", "none such"])
    place = MetadataFilters(filters=[MetadataFilter(key="place", operator=FilterOperator.EQ, value="hives")])
    vectors.delete_nodes(filters=place)
    assert store.ids() == ["bridge"]
    vectors.clear()
    assert len(store) == 0
    assert asyncio.run(vectors.aquery(VectorStoreQuery(query_str=QUESTION))).nodes == []


def test_a_pipeline_fills_a_vector_store_with_what_changed(store):
    vectors, embedding = SharedContextVectorStore(store), SharedContextEmbedding(store)
    pipeline = IngestionPipeline(
        transformations=[Lengths(in_place=False), embedding],  # in place, LlamaIndex keeps the changed hashes
        vector_store=vectors,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    assert len(pipeline.run(documents=documents())) == 3
    assert store.get("kiln").metadata["length"] == len(TEXTS["kiln"])
    assert len(pipeline.run(documents=documents())) == 0
    changed = documents()[1:]
    changed[0].set_content("The kiln is cold.")
    assert [node.node_id for node in pipeline.run(documents=changed)] == ["kiln"]
    assert {document.id: document.text for document in store} == {"kiln": "The kiln is cold.", "hives": TEXTS["hives"]}


def test_the_embedding_is_the_stores_own(store, handbook_store):
    assert SharedContextEmbedding(store).get_query_embedding("honey") == [1.0]
    embedding = SharedContextEmbedding(handbook_store)
    assert embedding.model_name == handbook_store.embedder.name
    near, far = embedding.get_text_embedding_batch(["Honey is taken in June.", "The kiln is locked."])
    asked = embedding.get_query_embedding(QUESTION)
    assert embedding.similarity(asked, near) > embedding.similarity(asked, far)
