"""The routes of vector stores: a store is one, and its documents are the files in it."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field

from shared_context.errors import DocumentNotFoundError, StoreClosedError, StoreFormatError, StoreUnavailableError
from shared_context.serve.access import Caller
from shared_context.serve.faults import Refusal
from shared_context.serve.ingestion import Attached, equalities
from shared_context.serve.protocol import Fields
from shared_context.serve.room import ByCaller, InRoom, Room
from shared_context.serve.routes.pages import page
from shared_context.serve.stores import ServedStore

COMPARISONS = ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin")
DEEPEST = 32
"""Filters within filters."""

router = APIRouter(prefix="/v1/vector_stores")


class NewStore(Fields):
    """The body that makes a vector store."""

    name: str | None = None
    file_ids: list[str] = []
    metadata: dict[str, Any] | None = None
    description: str | None = None
    expires_after: dict[str, Any] | None = None
    chunking_strategy: dict[str, Any] | None = None


class NewFile(Fields):
    """The body that adds an uploaded file."""

    file_id: str
    attributes: dict[str, str | float | bool | int] | None = None
    chunking_strategy: dict[str, Any] | None = None


class RankingOptions(Fields):
    """Of a search."""

    ranker: str | None = None
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.0


class SearchRequest(Fields):
    """The body of a search."""

    query: str | Annotated[list[str], Field(min_length=1, max_length=16)]
    filters: dict[str, Any] | None = None
    max_num_results: Annotated[int, Field(ge=1, le=50)] = 10
    ranking_options: RankingOptions | None = None
    rewrite_query: bool = False


@router.post("")
async def make(body: NewStore, room: InRoom, caller: ByCaller) -> dict[str, Any]:
    """A new store, and the uploaded files that it is to hold."""
    caller.check_operates()
    for id in body.file_ids:
        room.files.get(id, caller)
    served = await room.engine.change(room.makes.make, body.name)
    for id in body.file_ids:
        room.ingestion.attach(served, id, {}, caller)
    return await _described(room, served, caller)


@router.get("")
async def all_stores(
    room: InRoom, caller: ByCaller, after: str | None = None, limit: int = 20, order: Literal["asc", "desc"] = "desc"
) -> dict[str, Any]:
    """The stores that the caller may use."""
    mine = [await room.own(served, caller) for served in room.stores.seen_by(caller)]
    found = [await _listed(room, served, caller) for served in mine]
    return page(found[::-1] if order == "desc" else found, after, limit)


@router.get("/{name}")
async def one(name: str, room: InRoom, caller: ByCaller) -> dict[str, Any]:
    """One store."""
    return await _described(room, await _store(room, name, caller), caller)


@router.delete("/{name}")
async def delete(name: str, room: InRoom, caller: ByCaller) -> dict[str, Any]:
    """Delete a store that a request has made."""
    caller.check_operates()
    served = await _store(room, name, caller)
    if not served.made_here:
        raise Refusal(
            403, f"The store {name!r} was given when the server was started; whoever runs it may delete its folder."
        )
    await room.engine.change(room.makes.delete, served)
    return {"id": name, "object": "vector_store.deleted", "deleted": True}


@router.post("/{name}/search")
async def search(name: str, body: SearchRequest, room: InRoom, caller: ByCaller) -> dict[str, Any]:
    """The passages that answer a query best."""
    served = await _store(room, name, caller)
    queries = [body.query] if isinstance(body.query, str) else body.query
    threshold = body.ranking_options.score_threshold if body.ranking_options is not None else 0.0
    filters = caller.narrowed(in_words_of_stores(body.filters) if body.filters else None)

    def passages() -> list[dict[str, Any]]:
        best: dict[tuple[str, int, int], Any] = {}
        for query in queries:
            found = served.store.retrieve(query, body.max_num_results, filters=filters, min_score=threshold or None)
            for passage in found:
                place = (passage.doc_id, passage.start, passage.end)
                if place not in best or best[place].score < passage.score:
                    best[place] = passage
        ranked = sorted(best.values(), key=lambda passage: -passage.score)[: body.max_num_results]
        return [
            {
                "file_id": passage.doc_id,
                "filename": str(passage.metadata.get("file_name", passage.doc_id)),
                "score": passage.score,
                "attributes": attributes(passage.metadata),
                "content": [{"type": "text", "text": passage.text}],
            }
            for passage in ranked
        ]

    async with room.engine.slot():
        data = await room.engine.beside(passages)
    return {
        "object": "vector_store.search_results.page",
        "search_query": queries,
        "data": data,
        "has_more": False,
        "next_page": None,
    }


@router.post("/{name}/files")
async def attach(name: str, body: NewFile, room: InRoom, caller: ByCaller) -> dict[str, Any]:
    """Make a document of an uploaded file; it is done in the background, its status tells how far it is."""
    caller.check_writes()
    served = await _store(room, name, caller)
    room.files.get(body.file_id, caller)
    metadata = {**(body.attributes or {}), **equalities(caller.filters)}
    if not caller.sees({**metadata, "file_name": room.files.get(body.file_id, caller)["filename"]}):
        raise Refusal(403, "attributes: this key would not see such a document; give those that its filters ask for.")
    return _attached(served, room.ingestion.attach(served, body.file_id, metadata, caller))


@router.get("/{name}/files")
async def documents(
    name: str,
    room: InRoom,
    caller: ByCaller,
    after: str | None = None,
    limit: int = 20,
    order: Literal["asc", "desc"] = "desc",
    filter: Literal["in_progress", "completed", "failed", "cancelled"] | None = None,
) -> dict[str, Any]:
    """The documents of a store, and the files that are about to be."""
    served = await _store(room, name, caller)
    ids = await room.engine.beside(served.store.ids, caller.filters)
    found = [{"id": id} for id in ids]
    pending = [_attached(served, one) for one in room.ingestion.unfinished(served, caller) if one.id not in ids]
    if filter is not None:
        pending = [one for one in pending if one["status"] == filter]
        found = found if filter == "completed" else []
    found = [*found, *pending]
    shown = page(found[::-1] if order == "desc" else found, after, limit)
    shown["data"] = [await _document(room, served, one["id"], caller) for one in shown["data"]]
    return shown


@router.get("/{name}/files/{id:path}")
async def document(name: str, id: str, room: InRoom, caller: ByCaller) -> dict[str, Any]:
    """One document; with ``/content`` behind its id, its text."""
    served = await _store(room, name, caller)
    try:
        return await _document(room, served, id, caller)
    except Refusal:
        if not id.endswith("/content"):
            raise
    text = (await _seen(room, served, id.removesuffix("/content"), caller)).text
    data = [{"type": "text", "text": text}]
    return {"object": "vector_store.file_content.page", "data": data, "has_more": False, "next_page": None}


@router.delete("/{name}/files/{id:path}")
async def detach(name: str, id: str, room: InRoom, caller: ByCaller) -> dict[str, Any]:
    """Delete a document from a store; the file that it was made of stays."""
    caller.check_writes()
    served = await _store(room, name, caller)
    if not room.ingestion.forget(served, id, caller):
        await _seen(room, served, id, caller)
        await room.engine.change(served.store.delete, id)
    return {"id": id, "object": "vector_store.file.deleted", "deleted": True}


async def _store(room: Room, name: str, caller: Caller) -> ServedStore:
    return await room.store(name, caller, param="vector_store_id")


async def _seen(room: Room, served: ServedStore, id: str, caller: Caller) -> Any:
    """A document that the caller may see; another one is to him as one that there is not."""
    try:
        found = await room.engine.beside(served.store.get, id)
        if caller.sees(found.metadata):
            return found
    except DocumentNotFoundError:
        pass
    raise Refusal(
        404, f"There is no document {id[:64]!r} in {served.name!r}.", code="document_not_found", param="file_id"
    )


async def _document(room: Room, served: ServedStore, id: str, caller: Caller) -> dict[str, Any]:
    attached = room.ingestion.get(served, id, caller)
    if attached is not None and attached.status != "completed":
        return _attached(served, attached)
    found = await _seen(room, served, id, caller)
    return {
        "id": id,
        "object": "vector_store.file",
        "created_at": attached.created if attached is not None else served.created,
        "vector_store_id": served.name,
        "status": "completed",
        "last_error": None,
        "usage_bytes": len(found.text.encode()),
        "attributes": attributes(found.metadata),
    }


def _attached(served: ServedStore, attached: Attached) -> dict[str, Any]:
    return {
        "id": attached.id,
        "object": "vector_store.file",
        "created_at": attached.created,
        "vector_store_id": served.name,
        "status": attached.status,
        "last_error": attached.error,
        "usage_bytes": 0,
        "attributes": dict(attached.metadata),
    }


async def _listed(room: Room, served: ServedStore, caller: Caller) -> dict[str, Any]:
    """A store among others, which are listed where it cannot be read, too."""
    try:
        return await _described(room, served, caller)
    except (StoreClosedError, StoreUnavailableError, StoreFormatError):
        return _vector_store(served, "expired", 0, 0, 0, 0)


async def _described(room: Room, served: ServedStore, caller: Caller) -> dict[str, Any]:
    completed = len(await room.engine.beside(served.store.ids, caller.filters))
    unfinished = [one.status for one in room.ingestion.unfinished(served, caller)]
    running, failed = unfinished.count("in_progress"), unfinished.count("failed")
    # How many bytes a whole store takes tells of documents that a caller may not see.
    nbytes = (await room.engine.beside(served.store.stats))["database_bytes"] if caller.filters is None else 0
    return _vector_store(served, "in_progress" if running else "completed", nbytes, running, completed, failed)


def _vector_store(
    served: ServedStore, status: str, nbytes: int, running: int, completed: int, failed: int
) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "vector_store",
        "created_at": served.created,
        "name": served.name,
        "usage_bytes": nbytes,
        "file_counts": {
            "in_progress": running,
            "completed": completed,
            "failed": failed,
            "cancelled": 0,
            "total": completed + running + failed,
        },
        "status": status,
        "last_active_at": None,
        "metadata": {},
    }


def attributes(metadata: Any) -> dict[str, Any]:
    """Metadata as far as OpenAI's protocol has a place for them: texts, numbers and truth values."""
    return {key: value for key, value in metadata.items() if isinstance(value, str | int | float | bool)}


def in_words_of_stores(filters: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """A filter in OpenAI's form, ``{"type", "key", "value"}`` or ``{"type", "filters"}``, as stores take it.

    One in the form of stores stays as it is.

    Raises:
        Refusal: it is neither.
    """
    kind = filters.get("type")
    if kind in COMPARISONS and {"type", "key", "value"} == set(filters):
        return {str(filters["key"]): {f"${kind}": filters["value"]}}
    if kind in ("and", "or") and isinstance(filters.get("filters"), list) and depth < DEEPEST:
        parts = [in_words_of_stores(part, depth + 1) for part in filters["filters"] if isinstance(part, dict)]
        if len(parts) == len(filters["filters"]):
            return {f"${kind}": parts}
    if "filters" in filters or {"type", "key"} <= set(filters):
        kinds = ", ".join((*COMPARISONS, "and", "or"))
        raise Refusal(
            400, f"filters: a filter has type ({kinds}), and key and value or filters.", code="filters", param="filters"
        )
    return filters
