"""Serving: answers under load of `serve` in process, of `serve` with vLLM, and of the same vLLM over pasted chunks."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from shared_context import SharedLLMContextStore, SharedLLMModel, StoreConfig
from shared_context.errors import ConfigError
from shared_context.evaluation.baselines import ChunkedRAG
from shared_context.evaluation.load import CLIENTS, SECONDS, Found, figures, share_out
from shared_context.evaluation.questions import QuestionSet
from shared_context.evaluation.report import Report, Table, Target, model_setting
from shared_context.model.prompt import CONTEXT_FOOTER, CONTEXT_HEADER, SYSTEM_PROMPT
from shared_context.progress import with_progress
from shared_context.serve.vllm_process import vllm_server
from shared_context.store.embedder import load_default_embedder

ENTRIES = (1024, 4096)
"""KV entries that are injected, and tokens that are pasted, at most."""

TURNS = 2
"""How often each way has its turn with a part of the questions, where a part has one for each client."""

TIMES = 3.0
"""How many times the answers of pasted text are wanted where most is shown."""

SECONDS_TO_START = 900
IN_PROCESS, INJECTED, PASTED = "serve in process", "serve with vLLM, injected", "the same vLLM, chunks pasted"
STORE = "asked"


@dataclass(frozen=True)
class Way:
    """Who is asked, and how.

    Attributes:
        client: of the server.
        body: of the request, by question, tokens shown, and what tells one pass over the questions from others.
    """

    client: httpx2.Client
    body: Callable[[str, int, str], dict[str, Any]]


def measure(
    model: SharedLLMModel,
    asked: QuestionSet,
    *,
    vllm: str | None,
    entries: Sequence[int] = ENTRIES,
    clients: Sequence[int] = CLIENTS,
    limit: int | None = None,
    max_tokens: int = 24,
) -> Report:
    """Seconds to the first token and answers a minute, by tokens shown and clients at a time.

    All servers run beside each other, those that are not asked idle. For each number of entries and of clients they
    take turns with the questions, in one order and then in the other.

    Args:
        model: answers; MiniLM embeds for both sides.
        asked: the documents and the questions.
        vllm: as `serve --engine` takes the command; None measures what runs without it.
        entries: injected, and tokens pasted, at most.
        clients: at a time.
        limit: questions of the sample; None is all.
        max_tokens: of an answer, at most.

    Raises:
        ConfigError: a server does not come to answer.
    """
    questions, embedder = [question.text for question in asked.sample(limit)], load_default_embedder()
    not_run: dict[str, str] = {}
    with TemporaryDirectory() as folder, ExitStack() as running:
        path = Path(folder) / f"{STORE}.ctx"
        # Without a floor the whole budget is spent, so that both sides are given the same number of tokens.
        with SharedLLMContextStore(model, path, config=StoreConfig(floor=0.0), embedder=embedder) as store:
            for id, text in asked.documents.items():
                store.add(text, id=id)
            store.warm()
        loading = ["--dtype", str(model.dtype).removeprefix("torch."), "--device", str(model.device)]
        ways = {IN_PROCESS: _served(running.enter_context(_serve(path, *loading)), max_tokens)}
        if vllm is None:
            not_run |= dict.fromkeys((INJECTED, PASTED), "no vLLM was named")
        else:
            engine, selections = running.enter_context(vllm_server(vllm, model))
            front = running.enter_context(_serve(path, *loading, "--engine", engine, "--selections", str(selections)))
            chunks = ChunkedRAG(model, embedder, asked.documents)
            ways[INJECTED] = _served(front, max_tokens)
            ways[PASTED] = _pasted(running.enter_context(_client(engine)), chunks, max_tokens)
        found = _take_turns(ways, questions, entries, clients)
    rows = [(*key, *figures(of), of.tokens / max(1, len(of.whole))) for key, of in found.items()]
    columns = (
        "shown", "clients", "way", "first token, median (s)", "95th (s)", "answer, median (s)", "answers a minute",
        "failed", "tokens of an answer",
    )  # fmt: skip
    return Report(
        "serving",
        {**model_setting(model), "questions": len(questions), "tokens of an answer, at most": max_tokens},
        [Table("Answers under load", columns, rows, keys=3)],
        list(_targets(found, entries, clients)) if vllm is not None else (),
        not_run=not_run,
        notes=[
            "The keys and values of the store are in its cache. What is pasted is searched for beforehand, and vLLM's "
            "own prefix cache is on; a question finds there what the others of the same line left. No answer is read "
            "again for citations."
        ],
    )


def _take_turns(
    ways: Mapping[str, Way], questions: Sequence[str], entries: Sequence[int], clients: Sequence[int]
) -> dict[tuple[int, int, str], Found]:
    found = {(shown, at_once, name): Found() for shown in entries for at_once in clients for name in ways}
    for shown in entries:
        for way in ways.values():
            share_out(way.client, [way.body(questions[0], shown, "first")], 1, Found())  # warm
        for at_once in with_progress(list(clients), f"clients, {shown} tokens"):
            turns = min(TURNS, max(1, len(questions) // at_once))
            for turn in range(turns):
                for name in sorted(ways, key=list(ways).index, reverse=turn % 2 == 1):
                    of_line = f"{shown} {at_once}"
                    bodies = [ways[name].body(question, shown, of_line) for question in questions[turn::turns]]
                    share_out(ways[name].client, bodies, at_once, found[shown, at_once, name])
    return found


def _targets(
    found: Mapping[tuple[int, int, str], Found], entries: Sequence[int], clients: Sequence[int]
) -> Iterator[Target]:
    most = max(entries)
    for at_once in clients:
        first, _, _, injected, _ = figures(found[most, at_once, INJECTED])
        *_, pasted, _ = figures(found[most, at_once, PASTED])
        what = f"{most} shown, {at_once} clients"
        yield Target(f"{what}: answers a minute, injected to pasted", injected / pasted, ">=", TIMES)
        if at_once >= 4:
            in_process, *_ = figures(found[most, at_once, IN_PROCESS])
            yield Target(f"{what}: first token, with vLLM to in process", first / in_process, "<=", 1.0)


# ---- who is asked


def _served(client: httpx2.Client, max_tokens: int) -> Way:
    def body(question: str, shown: int, line: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}]
        return {"model": STORE, "messages": messages, "budget": shown, "citations": "shown", **_answered(max_tokens)}

    return Way(client, body)


def _pasted(client: httpx2.Client, chunks: ChunkedRAG, max_tokens: int) -> Way:
    (name, *_) = (one["id"] for one in client.get("/v1/models").json()["data"])

    def body(question: str, shown: int, line: str) -> dict[str, Any]:
        context = f"{CONTEXT_HEADER}{chunks.context(question, shown)}{CONTEXT_FOOTER}{question}"
        messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": context}]
        # Else a question would find the whole prompt there that it left when it was asked in the line before.
        return {"model": name, "messages": messages, "temperature": 0, "cache_salt": line, **_answered(max_tokens)}

    return Way(client, body)


def _answered(max_tokens: int) -> dict[str, Any]:
    return {"max_tokens": max_tokens, "stream": True, "stream_options": {"include_usage": True}}


@contextmanager
def _serve(store: Path, *further: str) -> Iterator[httpx2.Client]:
    """A client of a `shared-context serve` of a store, which is ended with it.

    Raises:
        ConfigError: it does not come to answer.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "shared_context", "serve", str(store), "--port", str(port), *further]
    log = store.with_name(f"{port}.log")
    with log.open("wb") as to, subprocess.Popen(command, stderr=to) as server:
        try:
            with _client(f"http://127.0.0.1:{port}") as client:
                _wait_for(client, server, log)
                yield client
        finally:
            server.terminate()


def _wait_for(client: httpx2.Client, server: subprocess.Popen[bytes], log: Path) -> None:
    said, until = "", time.monotonic() + SECONDS_TO_START
    while server.poll() is None and time.monotonic() < until:
        try:
            ready = client.get("/ready")
        except httpx2.ConnectError:
            pass
        else:
            if ready.status_code == 200:
                return
            said = ready.text
        time.sleep(1.0)
    raise ConfigError(f"serve does not answer: {said}{log.read_text(encoding='utf-8')[-2000:]}")


def _client(url: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, timeout=SECONDS, trust_env=False, limits=httpx2.Limits(max_connections=None))
