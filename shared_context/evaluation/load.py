"""A server under load: first tokens and answers a minute with several clients, and a soak with changes between."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, cycle, islice
from typing import Any
from urllib.parse import quote

import httpx2
import numpy as np

from shared_context.config import require
from shared_context.errors import ConfigError
from shared_context.evaluation.report import Report, Table, Target

CLIENTS = (1, 4, 16)
"""Clients at a time."""

SECONDS = 600.0
"""For which a server may be silent."""

MEMORY_GROWTH = 1.05
"""What memory may have become of itself between the first and the last quarter of a soak."""

_MEMORY = re.compile(r"^process_resident_memory_bytes ([0-9.e+]+)$", re.MULTILINE)


@dataclass
class Found:
    """What came of requests; several threads add to it.

    Attributes:
        seconds: that all of it took.
        first_token, whole: seconds of each answer.
        tokens: of all answers whose requests asked for their usage.
        statuses: how often each status came.
        citations, untrue: how many were looked up, and how many did not stand in their document.
        changes: documents that were added and deleted again.
        memory: bytes of the server's process, as the soak goes on.
    """

    seconds: float = 0.0
    first_token: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    tokens: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    citations: int = 0
    untrue: int = 0
    changes: int = 0
    memory: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def measure(
    url: str,
    questions: Sequence[str],
    *,
    store: str | None = None,
    key: str | None = None,
    clients: Sequence[int] = CLIENTS,
    budget: int = 1024,
    max_tokens: int = 24,
    minutes: float = 0.0,
) -> Report:
    """Have clients ask a running ``shared-context serve``; streams are read to their end.

    The questions are shared out among the clients, and each is asked once for each number of clients. A soak asks them
    again and again with the most clients while documents are added and deleted, looks up every citation, and watches
    the server's memory.

    Args:
        url: of its root.
        questions: what is asked.
        store: name of the store; None is the first that the server names.
        key: the API key, for a soak one that may write; None sends none.
        clients: how many at a time.
        budget: KV entries of each selection.
        max_tokens: tokens of an answer at most.
        minutes: that the soak takes; 0 is none.

    Raises:
        ConfigError: there is no server, or it has no store for this key.
    """
    require(len(questions) > 0, "questions", 0, "there have to be some")
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with httpx2.Client(
        base_url=url, headers=headers, timeout=SECONDS, trust_env=False, limits=httpx2.Limits(max_connections=None)
    ) as client:
        try:
            served = client.get("/v1/models")
        except httpx2.HTTPError as error:
            raise ConfigError(f"url {url!r}: nobody answers there ({error}); start shared-context serve.") from error
        names = [model["id"] for model in served.json()["data"]] if served.status_code == 200 else []
        if not names:
            raise ConfigError(f"url {url!r}: there is no store for this key (status {served.status_code}).")
        body = {"model": store or names[0], "budget": budget, "max_tokens": max_tokens, "stream": True}
        client.post("/v1/chat/completions", json=_asking(body, questions[0]) | {"stream": False})  # first of all: warm
        rows = []
        for at_once in clients:
            found = Found()
            share_out(client, [_asking(body, question) for question in questions], at_once, found)
            rows.append((at_once, *figures(found)))
        columns = ("clients", "first token, median (s)", "95th (s)", "answer, median (s)", "answers a minute", "failed")
        parts = [Table("Answers under load", columns, rows)]
        targets: list[Target] = []
        if minutes:
            table, targets = _soak(client, body, questions, max(clients), 60 * minutes)
            parts.append(table)
    settings = {"url": url, "store": body["model"], "questions": len(questions), "budget": budget, "tokens": max_tokens}
    return Report("load", settings, parts, targets)


def _asking(body: dict[str, Any], question: str) -> dict[str, Any]:
    return {**body, "messages": [{"role": "user", "content": question}]}


def share_out(
    client: httpx2.Client, bodies: Iterable[dict[str, Any]], at_once: int, found: Found
) -> list[list[dict[str, Any]]]:
    """Let clients take streamed chat completions until there are none.

    Args:
        client: of a server of OpenAI's protocol.
        bodies: of the requests.
        at_once: clients.
        found: what came of it is added to this.

    Returns:
        The citations of each answer.
    """
    began, waiting, lock, cited = time.perf_counter(), iter(bodies), threading.Lock(), []

    def ask() -> None:
        while True:
            with lock:
                body = next(waiting, None)
            if body is None:
                return
            cited.append(_ask(client, body, found))

    with ThreadPoolExecutor(at_once) as pool:
        for done in [pool.submit(ask) for _ in range(at_once)]:
            done.result()
    found.seconds += time.perf_counter() - began
    return cited


def _ask(client: httpx2.Client, body: dict[str, Any], found: Found) -> list[dict[str, Any]]:
    """One question; its citations."""
    began, first, cited, failed, tokens = time.perf_counter(), None, [], False, 0
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            failed = failed or "error" in event
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            for choice in event.get("choices", ()):
                if choice["delta"].get("content"):
                    first = first or time.perf_counter() - began
                cited += [note["file_citation"] for note in choice["delta"].get("annotations") or ()]
    with found.lock:
        status = 502 if failed else response.status_code
        found.statuses[status] += 1
        found.tokens += tokens
        if status == 200:
            found.whole.append(time.perf_counter() - began)
            found.first_token.append(first or found.whole[-1])
    return cited


def figures(found: Found) -> tuple[float | int, ...]:
    """Seconds to the first token (median, 95th percentile) and of an answer (median), answers a minute, failures."""
    failed = found.statuses.total() - len(found.whole)
    if not found.whole:
        return (float("nan"),) * 3 + (0.0, failed)
    return (
        float(np.median(found.first_token)),
        float(np.quantile(found.first_token, 0.95)),
        float(np.median(found.whole)),
        60 * len(found.whole) / found.seconds,
        failed,
    )


# ---- soak


def _soak(
    client: httpx2.Client, body: dict[str, Any], questions: Sequence[str], at_once: int, seconds: float
) -> tuple[Table, list[Target]]:
    found, until = Found(), time.monotonic() + seconds

    def asked() -> Iterator[str]:
        for question in cycle(questions):
            if time.monotonic() >= until:
                return
            yield question

    with ThreadPoolExecutor(2) as beside:
        changing = beside.submit(_change, client, body["model"], until, found)
        watching = beside.submit(_watch, client, until, found)
        waiting = asked()
        while batch := [_asking(body, question) for question in islice(waiting, 4 * at_once)]:
            cited = share_out(client, batch, at_once, found)
            _look_up(client, body["model"], [one for notes in cited for one in notes], found)
        changing.result()
        watching.result()
    quarter = max(1, len(found.memory) // 4)
    growth = float(np.mean(found.memory[-quarter:]) / np.mean(found.memory[:quarter])) if found.memory else None
    refused, (*_, per_minute, failed) = found.statuses[429], figures(found)
    columns = (
        "clients", "minutes", "answers a minute", "failed", "refused (429)", "changes", "citations", "untrue", "memory",
    )  # fmt: skip
    row = (
        at_once, seconds / 60, per_minute, failed - refused, refused, found.changes, found.citations, found.untrue,
        growth,
    )  # fmt: skip
    targets = [
        Target("requests that failed", float(failed - refused), "<=", 0.0),
        Target("citations that do not stand in their document", float(found.untrue), "<=", 0.0),
    ]
    if growth is not None:
        targets.append(Target("memory, last quarter to first", growth, "<=", MEMORY_GROWTH))
    return Table("Soak", columns, [row]), targets


def _change(client: httpx2.Client, store: str, until: float, found: Found) -> None:
    """Add a document and delete it, again and again."""
    for number in count():
        if time.monotonic() >= until:
            return
        text = f"Notice {number}: the ferry of this hour is late by {number % 50} minutes, and the pier is wet. " * 20
        uploaded = client.post(
            "/v1/files", files={"file": (f"notice-{number}.txt", text.encode())}, data={"purpose": "assistants"}
        )
        if uploaded.status_code != 200:
            with found.lock:
                found.statuses[uploaded.status_code] += 1
            return
        id = uploaded.json()["id"]
        state = client.post(f"/v1/vector_stores/{store}/files", json={"file_id": id}).json()
        while state.get("status") == "in_progress":
            time.sleep(0.2)
            state = client.get(f"/v1/vector_stores/{store}/files/{id}").json()
        gone = [client.delete(f"/v1/vector_stores/{store}/files/{id}"), client.delete(f"/v1/files/{id}")]
        with found.lock:
            found.changes += state.get("status") == "completed"
            for response in gone:
                if response.status_code != 200:
                    found.statuses[response.status_code] += 1


def _watch(client: httpx2.Client, until: float, found: Found) -> None:
    """The memory of the server, a hundred times at most."""
    pause = max(1.0, (until - time.monotonic()) / 100)
    while time.monotonic() < until:
        told = _MEMORY.search(client.get("/metrics").text)
        if told is not None:
            found.memory.append(float(told[1]))
        time.sleep(min(pause, max(0.0, until - time.monotonic())))


def _look_up(client: httpx2.Client, store: str, cited: Sequence[dict[str, Any]], found: Found) -> None:
    """Whether each citation stands in its document; those of documents that are gone by now are passed over."""
    texts: dict[str, str | None] = {}
    for one in cited:
        id = one["file_id"]
        if id not in texts:
            answer = client.get(f"/v1/vector_stores/{store}/files/{quote(id, safe='')}/content")
            texts[id] = answer.json()["data"][0]["text"] if answer.status_code == 200 else None
        if (text := texts[id]) is not None:
            found.citations += 1
            found.untrue += text[one["start"] : one["end"]] != one["quote"]
