"""A store under load for a given time: its memory, descriptors and disk stay flat, and nothing is ever mixed up.

``make soak`` runs it for an hour, ``make soak SECONDS=60`` for a minute. Several processes with several threads each
add, change, delete and ask, hold conversations and drop namespaces of one store. There are only so many ids, so that
what is stored goes up and down around one size. Every text bears the seed that its metadata bear, and the name of the
namespace that it is of.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import psutil
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from shared_context import Document, SharedLLMContextStore, SharedLLMModel, StoreConfig, TreeConfig
from shared_context.config import CacheConfig
from shared_context.errors import SharedContextError
from shared_context.model.attention import ATTENTION
from shared_context.store.check import check

MIB = 2**20
NAMESPACES = ("", "north", "south")
IDS = [f"document {number}" for number in range(30)]
TALKS = ("ann", "ben", "cleo")
LONGEST_TALK = 30
LONGEST_TEXT = 2_000
"""Characters; a document that grew beyond begins anew."""
CACHE_BYTES = 4 * MIB
WORDS = ["weir", "heron", "miller", "barge", "lock", "osier", "eel", "towpath", "sluice", "ferry", "reed", "otter"]
SAMPLES = 40
"""Looks at memory, descriptors and disk, evenly over the time."""
ROOM = {"rss": 24 * MIB, "descriptors": 4, "disk": 3 * MIB}
GROWTH = {"rss": 0.04, "descriptors": 0.0, "disk": 0.25}
"""What the last quarter's median may be above the second's: so many, or this share of it. Memory is given back to the
system unevenly, and how much is stored goes up and down."""


class Mixed(AssertionError):
    """What belongs together is not together."""


def make_model() -> SharedLLMModel:
    """A model of random weights with the default model's vocabulary."""
    tokenizer = SharedLLMModel.from_pretrained(adapter=None).tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1, tie_word_embeddings=True, max_position_embeddings=2048,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).float().eval()
    return SharedLLMModel(base, tokenizer, name="soak")


def config() -> StoreConfig:
    cache = CacheConfig(memory_bytes=CACHE_BYTES, disk_bytes=CACHE_BYTES)
    return StoreConfig(tree=TreeConfig(chunk_size=64, height=2), lead_in=8, cache=cache)


def text(random: Random, name: str, seed: int) -> str:
    words = " ".join(random.choices(WORDS, k=random.randint(3, 120)))
    return f"Of {name or 'nobody'}, seed{seed}: {words}."


def document(random: Random, name: str) -> Document:
    seed = random.randrange(10**9)
    return Document(text(random, name, seed), random.choice(IDS), {"seed": seed})


def checked(name: str, texts: list[str]) -> None:
    """That all texts are of a namespace."""
    for one in texts:
        if any(f"Of {other or 'nobody'}," in one for other in NAMESPACES if other != name):
            raise Mixed(f"{name!r} is shown {one[:80]!r}")


def look(store: SharedLLMContextStore, random: Random, name: str) -> None:
    found = store.get(random.choice(IDS))
    checked(name, [found.text])
    if f"seed{found.metadata['seed']}:" not in found.text:
        raise Mixed(f"text and metadata of two writers: {found}")


def grow(store: SharedLLMContextStore, random: Random, name: str) -> None:
    id = random.choice(IDS)
    if len(store.get(id).text) < LONGEST_TEXT:
        store.append(id, " " + text(random, name, 0))
    else:
        fresh = document(random, name)
        store.update(id, fresh.text, fresh.metadata)


def replace(store: SharedLLMContextStore, random: Random, name: str) -> None:
    fresh = document(random, name)
    store.update(fresh.id, fresh.text, fresh.metadata)


def ask(store: SharedLLMContextStore, random: Random, name: str) -> None:
    selection = store.select(" ".join(random.choices(WORDS, k=4)), budget=random.choice([32, 128]))
    checked(name, [selection.text])
    if selection.nodes:
        store.model.nll("Where?", " Here.", context=selection)


def talk(store: SharedLLMContextStore, random: Random, name: str) -> None:
    memory = store.conversation(random.choice(TALKS), recent_tokens=60)
    memory.append("user", text(random, name, 0))
    said = memory.messages()
    checked(name, [message["content"] for message in said])
    checked(name, [memory.select("heron", budget=64).text])
    if len(said) > LONGEST_TALK:
        random.choice([lambda: memory.forget(0, 10), memory.clear])()


CALLS: list[tuple[float, Callable[[SharedLLMContextStore, Random, str], object]]] = [
    (20, lambda s, r, n: s.add(document(r, n), replace=True)),
    (4, lambda s, r, n: s.add([document(r, n) for _ in range(5)], replace=True, atomic=r.random() < 0.5)),
    (8, replace),
    (8, grow),
    (12, lambda s, r, n: s.delete(r.choice(IDS))),
    (20, look),
    (25, ask),
    (10, lambda s, r, n: checked(n, [p.text for p in s.retrieve(r.choice(WORDS), 3)])),
    (12, talk),
    (3, lambda s, r, n: [checked(n, [d.text]) for d in s]),
    (2, lambda s, r, n: s.stats()),
    (1, lambda s, r, n: s.gc()),
    (0.2, lambda s, r, n: s.compact()),
    (0.3, lambda s, r, n: s.drop() if n else None),
]


def work(store: SharedLLMContextStore, random: Random, until: float, counts: Counter, wrong: list[str]) -> None:
    """Call methods at random until the time is over; notes how many, what was refused, and what is wrong."""
    weights, calls = zip(*CALLS, strict=True)
    while time.monotonic() < until and not wrong:
        (call,), name = random.choices(calls, weights), random.choice(NAMESPACES)
        try:
            call(store.namespace(name) if name else store, random, name)
            counts["done"] += 1
        except SharedContextError as error:
            counts[type(error).__name__] += 1
        except BaseException:
            wrong.append(traceback.format_exc())


def worker(folder: Path, seconds: float, threads: int, seed: int) -> int:
    """One of the processes; tells what it did as a line of JSON."""
    torch.set_num_threads(1)
    store = SharedLLMContextStore(make_model(), folder, config=config(), embedder=None)
    print("ready", flush=True)
    sys.stdin.readline()
    until = time.monotonic() + seconds
    counts, wrong = Counter(), []
    randoms = [Random(seed * 100 + number) for number in range(threads)]
    running = [threading.Thread(target=work, args=(store, each, until, counts, wrong)) for each in randoms]
    for one in running:
        one.start()
    for one in running:
        one.join()
    store.close()
    print(json.dumps({"counts": counts, "wrong": wrong}), flush=True)
    return 0


def disk_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # gone meanwhile
            continue
    return total


def soak(seconds: float, processes: int, threads: int, seed: int) -> tuple[dict[str, list[float]], Counter, list[str]]:
    """What was seen: samples by name, counts of calls, and what is wrong."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "store"
        arguments = ["--folder", str(folder), "--seconds", str(seconds), "--threads", str(threads)]
        started = [
            subprocess.Popen(
                [sys.executable, __file__, "--worker", *arguments, "--seed", str(seed + number)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for number in range(processes)
        ]  # fmt: skip
        for process in started:
            process.stdout.readline()
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
        seen = [psutil.Process(process.pid) for process in started]
        samples: dict[str, list[float]] = {name: [] for name in ROOM}
        end = time.monotonic() + seconds
        while time.monotonic() < end - seconds / SAMPLES:
            time.sleep(seconds / SAMPLES)
            samples["rss"].append(sum(one.memory_info().rss for one in seen))
            samples["descriptors"].append(sum(one.num_fds() for one in seen))
            samples["disk"].append(disk_bytes(folder))
        counts, wrong = Counter(), []
        for process in started:
            told = process.communicate()[0].splitlines()
            if process.returncode or not told:
                wrong.append(f"a process ended with {process.returncode}")
                continue
            counts.update(json.loads(told[-1])["counts"])
            wrong += json.loads(told[-1])["wrong"]
        wrong += [f"damage: {line}" for line in check(folder).damage]
        return samples, counts, wrong


def quarters(samples: list[float]) -> list[float]:
    size = max(1, len(samples) // 4)
    return [statistics.median(samples[at : at + size]) for at in range(0, 4 * size, size)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=4, help="of each process")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return worker(given.folder, given.seconds, given.threads, given.seed)
    samples, counts, wrong = soak(given.seconds, given.processes, given.threads, given.seed)
    print("| median of a quarter of the time | first | second | third | last |\n|---|---|---|---|---|")
    for name, unit in (("rss", MIB), ("descriptors", 1), ("disk", MIB)):
        found = quarters(samples[name])
        print(f"| {name}{', MiB' if unit == MIB else ''} | {' | '.join(f'{value / unit:,.0f}' for value in found)} |")
        if found[3] - found[1] > max(ROOM[name], GROWTH[name] * found[1]):
            wrong.append(f"{name} grew from {found[1] / unit:,.1f} to {found[3] / unit:,.1f}")
    print(f"\n{sum(counts.values()):,} calls from seed {given.seed} on: {dict(counts.most_common())}")
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
