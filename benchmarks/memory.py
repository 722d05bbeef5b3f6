"""Memory: what a process needs at its peak to ingest a long document and answer over it, beside chunked RAG."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch

from shared_context import CacheConfig, SharedLLMContextStore, SharedLLMModel, StoreConfig
from shared_context.config import MIB
from shared_context.evaluation.indexing import Indexer, indexers
from shared_context.evaluation.long_text import repeat_to
from shared_context.evaluation.report import Cell, Report, Table, Target, model_setting
from shared_context.progress import with_progress
from shared_context.store.embedder import load_default_embedder

TOKENS = 131_072
CACHE_MIB = 256
QUESTIONS = 8
ANSWER_TOKENS = 16

PASTED_TOKENS = 1024
"""Tokens of chunks that chunked RAG shows at most: as many as a selection has KV entries by default."""

CHUNKED_STAGES = ("loading the models", "indexing", "answering")

T = TypeVar("T")


def measure(
    model: str, text: str, *, tokens: int = TOKENS, cache_mib: int = CACHE_MIB, questions: int = QUESTIONS
) -> Report:
    """Peak resident memory with the library, with chunked RAG, and of the models reading a full window of pasted text.

    Each is measured in a process of its own. The library ingests the document, computes the KV of every chunk once,
    which is many times what the cache may keep, and answers over selections; chunked RAG indexes the document and
    answers the same questions over pasted chunks.

    Args:
        model: name or folder of the model, which each process loads anew.
        text: Markdown, whose sections are repeated up to ``tokens`` tokens.
        tokens: of the document.
        cache_mib: limit of the KV cache, MiB.
        questions: asked of the document.
    """
    plain, full_kv, setting = in_own_process(_plain, model, text, tokens)
    peaks = in_own_process(_with_store, model, text, tokens, cache_mib, questions)
    not_run: dict[str, str] = {}
    chunked = {
        way: in_own_process(_with_chunks, model, text, tokens, indexer, questions)
        for way, indexer in with_progress(list(indexers(not_run).items()), "memory of chunked RAG")
    }
    *_, last = peaks.values()
    return Report(
        "memory",
        {**setting, "document": tokens, "cache limit, MiB": cache_mib, "questions": questions},
        [
            Table("Peak resident memory", ("after", "MiB"), [(stage, _mib(peak)) for stage, peak in peaks.items()]),
            Table(
                "The same with chunked RAG, as peaks in MiB",
                ("what", *CHUNKED_STAGES),
                [(way, *map(_mib, of)) for way, of in chunked.items()],
            ),
            Table(
                "For comparison",
                ("what", "MiB"),
                [
                    ("peak of the same models with a full window of pasted text", _mib(plain)),
                    ("limit of the KV cache", cache_mib),
                    (f"full KV of {tokens:,} tokens, were it kept", _mib(full_kv)),
                ],
            ),
        ],
        [Target("peak in MiB, against models and cache limit", _mib(last), "<=", _mib(plain) + cache_mib)],
        not_run=not_run,
        notes=[
            "What the models need: the peak of a process that loads both models and answers over a full window of "
            f"text. Chunked RAG is shown {PASTED_TOKENS:,} tokens of chunks at most, a selection as many entries."
        ],
    )


def _with_store(name: str, text: str, tokens: int, cache_mib: int, questions: int) -> dict[str, int]:
    """Peak bytes after each stage."""
    model, embedder, peaks = SharedLLMModel.from_pretrained(name), load_default_embedder(), {}
    document = repeat_to(model, text, tokens)
    peaks["loading the models"] = peak_bytes()
    config = StoreConfig(cache=CacheConfig(memory_bytes=cache_mib * MIB))
    with SharedLLMContextStore(model, config=config, embedder=embedder) as store:
        store.add(document, id="document")
        peaks["ingest"] = peak_bytes()
        store.warm()
        peaks["computing the KV of every chunk"] = peak_bytes()
        for question in _questions(document, questions):
            model.generate(question, context=store.select(question), max_new_tokens=ANSWER_TOKENS)
        peaks["answering"] = peak_bytes()
    return peaks


def _with_chunks(name: str, text: str, tokens: int, indexer: Indexer, questions: int) -> tuple[int, int, int]:
    """Peak bytes of chunked RAG after each of ``CHUNKED_STAGES``."""
    model, embedder = SharedLLMModel.from_pretrained(name), load_default_embedder()
    document = repeat_to(model, text, tokens)
    loaded = peak_bytes()
    index = indexer(model, embedder, {"document": document})
    indexed = peak_bytes()
    for question in _questions(document, questions):
        model.generate(question, context=index.context(question, PASTED_TOKENS), max_new_tokens=ANSWER_TOKENS)
    return loaded, indexed, peak_bytes()


def _questions(document: str, count: int) -> Iterator[str]:
    """Questions about places all over the document."""
    for begin in islice(range(0, len(document), max(1, len(document) // count)), count):
        yield f"What is said of this? {document[begin : begin + 100]}"


def _plain(name: str, text: str, tokens: int) -> tuple[int, int, dict[str, Cell]]:
    """Peak bytes without the library's part, bytes of the full KV of ``tokens`` tokens, and the setting."""
    model, embedder = SharedLLMModel.from_pretrained(name), load_default_embedder()
    document = repeat_to(model, text, model.context_window)
    embedder.encode([document[at : at + 1000] for at in range(0, len(document), 1000)])
    question, room = "What is this about?", ANSWER_TOKENS + 128
    shortened = model.tokenize(document).characters(0, model.context_window - room)[1]
    model.generate(question, context=document[:shortened], max_new_tokens=ANSWER_TOKENS)
    peak = peak_bytes()
    (one_token,) = model.compressor.encode([torch.zeros(1, dtype=torch.long)])
    return peak, one_token.nbytes * tokens, model_setting(model)


def in_own_process(function: Callable[..., T], *args: object) -> T:
    """The function's result, computed in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def peak_bytes() -> int:
    """Most memory that was ever resident for this process, bytes."""
    # Unlike getrusage's figure this one begins anew with the program, not with the process that started it.
    if (status := _status("VmHWM")) is not None:
        return status
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def unmapped_bytes() -> int:
    """Memory that is resident now and of no file, bytes; where the system does not tell it apart, the peak of all."""
    return peak_bytes() if (own := _status("RssAnon")) is None else own


def _status(name: str) -> int | None:
    """What Linux says of this process, bytes."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _mib(count: int) -> int:
    return round(count / MIB)
