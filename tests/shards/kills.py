"""Kills at random moments of filling, publishing and asking stores of shards; nothing that was told may be lost.

``python tests/shards/kills.py --kills 200`` kills (SIGKILL) so many processes, of one kind after the other: the actors
that write and the driver of an ingest, who publishes, the server that is published to, and the actors that shards are.
After each kill the store, or what is published, is looked at, and what was cut off is done again:

- every document whose storing was told is there, with its text, and none is there twice;
- what is published is what it was before or what it was to become, whole, and the latter once that was told;
- every selection is that of shards in one process, or fails with an error of this library.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import boto3
import psutil
import torch
from killable import LATE_SECONDS, Driver, Objects, actors, cluster, drive, wait_for
from transformers import AutoModelForCausalLM, LlamaConfig

from shared_context import Document, SharedLLMModel
from shared_context.errors import SharedContextError
from shared_context.model.attention import ATTENTION
from shared_context.remote.address import Address
from shared_context.remote.publishing import push
from shared_context.remote.snapshot import numbers
from shared_context.shards import ShardedContextStore

SHARDS = 2
DOCUMENTS = 24
BATCH_CHARACTERS = 1000
"""A few documents: a batch is what is told at a time."""
RESTARTS = 3
"""An actor that writes is started again so often."""
BUCKET = "kills"
QUESTIONS = ("Who paints boat 9?", "lamp 7", "Where does the keeper of lamp 13 sleep?")
ASKED = 40
"""Selections of one driver."""


def documents(seed: int, count: int) -> list[Document]:
    return [
        Document(f"The keeper of lamp {n} paints boat {n * 3} and sleeps in house {seed}. " * (1 + n % 9), f"d{n}")
        for n in range(count)
    ]


def save_model(folder: Path) -> None:
    """A model of random weights that processes load from a folder, with the default model's vocabulary."""
    tokenizer = SharedLLMModel.from_pretrained(adapter=None).tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Campaign:
    """Kills, one after the other, each looked at.

    Args:
        work: a folder.
        head: of the cluster.
        objects: the server of the object storage.
        seed: of the moments.

    Attributes:
        over: no further round is begun.
        kills: how many there were, by kind.
        refused: after how many of them the library said what was missing.
        wrong: what was lost, twice there, or half.
    """

    def __init__(self, work: Path, head: psutil.Process, objects: Objects, seed: int):
        self._work, self._head, self._objects, self._seed = work, head, objects, seed
        self._random = Random(seed)
        self._load = partial(SharedLLMModel.from_pretrained, str(work / "model"), adapter=None, dtype="float32")
        self._model = self._load()
        self._round = 0
        self._seconds_to_publish = 1.0
        self.over = False
        self.kills, self.refused, self.wrong = Counter[str](), Counter[str](), list[str]()

    def go_on(self, kills: int, until: float) -> None:
        """Kill so many in all, as long as there is time."""
        publishing = self.publishers, self.object_server
        rounds = (*publishing, self.writers, *publishing, self.ingests, *publishing, self.shards)
        while self.kills.total() < kills and time.monotonic() < until and not self.over:
            self._round += 1
            folder = self._work / "round"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            each = rounds[self._round % len(rounds)]
            try:
                each(folder)
            except (AssertionError, TimeoutError, SharedContextError) as error:
                self.wrong.append(f"{each.__name__}, seed {self._seed}, round {self._round}: {error}")
                print(self.wrong[-1], file=sys.stderr)
            print(f"{each.__name__}: {self.kills.total()} kills", file=sys.stderr, flush=True)

    # An ingest

    def writers(self, folder: Path) -> None:
        """Kill actors while they write: the run ends as if nothing had been."""
        driver = self._ingest(folder)
        for _ in range(self._random.randint(1, RESTARTS)):
            self._after_some(driver, "Writer")
            written = actors(self._head, "Writer")
            if driver.over() or not written:
                break
            victim = self._random.choice(written)
            victim.kill()
            self.kills["an actor that writes"] += 1
            wait_for(lambda gone=victim: driver.over() or not gone.is_running())
        self._done(driver)
        self._look_at(folder, DOCUMENTS, driver)
        assert driver.told()[-2] == str(DOCUMENTS), f"told of {driver.told()[-2]} of {DOCUMENTS} documents"

    def ingests(self, folder: Path) -> None:
        """Kill the driver: what it has told is there, and a second run, killed or not, goes on from it."""
        for _ in range(self._random.randint(1, 3)):
            driver = self._ingest(folder)
            self._after_some(driver, "Writer")
            if driver.over():
                break
            driver.kill()
            self.kills["the driver of an ingest"] += 1
            self._look_at(folder, 0, driver)
        driver = self._ingest(folder)
        self._done(driver)
        self._look_at(folder, DOCUMENTS, driver)

    def _ingest(self, folder: Path) -> Driver:
        given, count = documents(self._round, DOCUMENTS), self._random.randint(1, SHARDS)

        def work(tell: Callable[[object], None]) -> None:
            from shared_context.shards import ray_ingest

            ray_ingest.BATCH_CHARACTERS = BATCH_CHARACTERS
            ray_ingest.ingest(
                self._load, folder / "store", given, shards=SHARDS, actors=count, embedder=None, num_cpus=0.1,
                progress=lambda report: tell(report.stored + report.known),
            )  # fmt: skip

        return drive(folder / "marks", work)

    def _after_some(self, driver: Driver, kind: str) -> None:
        """Wait for a random moment: before anything was told, or after some of it."""
        some = len(driver.told()) + self._random.randint(0, 4)
        wait_for(lambda: driver.over() or (actors(self._head, kind) and len(driver.told()) >= some))
        time.sleep(self._random.random() * 0.2)

    def _look_at(self, folder: Path, least: int, driver: Driver) -> None:
        """That a store has what was told, once each."""
        told = max([0, *map(int, filter(str.isdecimal, driver.told()))])
        if not (folder / "store").exists():
            assert not told, f"{told} documents were told, and there is no store"
            return
        try:
            with ShardedContextStore(self._model, folder / "store", embedder=None) as store:
                found = self._texts(store)
        except SharedContextError:
            if told:
                raise
            return  # it was killed while it was made
        expected = {document.id: document.text for document in documents(self._round, DOCUMENTS)}
        assert len(found) >= max(told, least), f"{told} documents were told, and {len(found)} are there"
        assert all(expected[id] == text for id, text in found.items()), "a document has another text"

    @staticmethod
    def _texts(store: ShardedContextStore) -> dict[str, str]:
        ids = store.ids()
        assert len(set(ids)) == len(ids), f"documents are there twice: {sorted(ids)}"
        return {id: store.get(id).text for id in ids}

    # Publishing

    def publishers(self, folder: Path) -> None:
        """Kill who publishes."""
        self._publish(folder, "who publishes", lambda driver: driver.kill())

    def object_server(self, folder: Path) -> None:
        """Kill the server that is published to."""

        def kill(driver: Driver) -> None:
            self._objects.kill()
            time.sleep(self._random.choice([0, 0, 1, 3]))
            self._objects.start()
            wait_for(driver.over)
            last = driver.told()[-1]
            assert last == "done" or last.startswith("refused: Store"), last
            self.refused["the server that is published to"] += last != "done"

        self._publish(folder, "the server that is published to", kill)

    def _publish(self, folder: Path, kind: str, kill: Callable[[Driver], None]) -> None:
        address = f"s3://{BUCKET}/{self._round}"
        before: list[int] = []
        for count in self._random.sample(range(1, 9), 4):
            after = [*before, count]
            driver = drive(folder / "marks", partial(self._add_and_push, folder / "store", count, address))
            wait_for(lambda at=driver: at.over() or "added" in at.told())
            began = time.monotonic()
            if before:
                time.sleep(self._random.random() * self._seconds_to_publish)
                if not driver.over():
                    kill(driver)
                    self.kills[kind] += 1
                told = "done" in driver.told()
                self._look_at_published(address, [after] if told else [before, after])
                self._done(drive(folder / "marks", partial(self._push, folder / "store", address)))
            else:
                self._done(driver)
                self._seconds_to_publish = time.monotonic() - began
            self._look_at_published(address, [after])
            before = after

    def _add_and_push(self, store: Path, count: int, address: str, tell: Callable[[object], None]) -> None:
        if not store.exists():
            ShardedContextStore.create(self._model, store, SHARDS, embedder=None).close()
        with ShardedContextStore(self._model, store, embedder=None) as opened:
            opened.add([Document(one.text, f"{count} {one.id}") for one in documents(count, count)])
        tell("added")
        push(store, address)

    @staticmethod
    def _push(store: Path, address: str, tell: Callable[[object], None]) -> None:
        push(store, address)

    def _look_at_published(self, address: str, allowed: list[list[int]]) -> None:
        """That the last snapshot, read anew, is one of those that it may be."""
        wanted = [
            {f"{count} {one.id}": one.text for count in counts for one in documents(count, count)} for counts in allowed
        ]
        number = numbers(Address(address))[-1]
        with ShardedContextStore(self._model, f"{address}@{number}", embedder=None) as store:
            found = self._texts(store)
        assert found in wanted, f"{address}@{number} has {sorted(found)}, and not what one of {allowed} gives"

    # Shards

    def shards(self, folder: Path) -> None:
        """Kill shards while they are asked, and the server from which others fetch theirs."""
        address = f"s3://{BUCKET}/{self._round}"
        self._add_and_push(folder / "store", DOCUMENTS, address, lambda line: None)
        with ShardedContextStore(self._model, folder / "store", embedder=None) as store:
            expected = [self._selected(store, question) for question in QUESTIONS]
        driver = drive(folder / "marks", partial(self._ask, folder / "store", expected))
        for _ in range(4):
            self._after_some(driver, "Shard")
            found = actors(self._head, "Shard")
            if driver.over() or not found:
                break
            self._random.choice(found).kill()
            self.kills["an actor that a shard is"] += 1
        self._done(driver)
        driver = drive(folder / "marks", partial(self._ask, address, expected))
        time.sleep(self._random.random() * 6)
        self._objects.kill()
        self.kills["the server that is fetched from"] += 1
        time.sleep(self._random.random() * 2)
        self._objects.start()
        wait_for(driver.over)
        last = driver.told()[-1]
        assert last == "done" or last.startswith("refused: S"), last
        self.refused["the server that is fetched from"] += last != "done"
        self._done(drive(folder / "marks", partial(self._ask, address, expected)))

    def _ask(self, place: Path | str, expected: list[object], tell: Callable[[object], None]) -> None:
        from shared_context.shards.ray_workers import RayWorkers

        workers = partial(RayWorkers, num_cpus=0.1, restarts=20, timeout=LATE_SECONDS)
        with ShardedContextStore(self._model, place, embedder=None, workers=workers) as store:
            for number in range(ASKED):
                found = self._selected(store, QUESTIONS[number % len(QUESTIONS)])
                assert found == expected[number % len(QUESTIONS)], f"another selection: {found}"
                tell(number)
                time.sleep(0.05)

    @staticmethod
    def _selected(store: ShardedContextStore, question: str) -> list[tuple[str, int, int]]:
        selection = store.select(question, budget=64)
        assert not selection.missing_shards
        return [(node.doc_id, node.start, node.end) for node in selection.nodes]

    @staticmethod
    def _done(driver: Driver) -> None:
        wait_for(driver.over)
        assert driver.told()[-1:] == ["done"], driver.told()[-1:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=7200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    logging.disable()
    torch.set_num_threads(1)
    # Ray's sockets lie in the folder, and their addresses must be short.
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        work = Path(folder)
        save_model(work / "model")
        os.environ["SHARED_CONTEXT_HOME"] = str(work / "home")
        objects = Objects(work)
        objects.start()
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        try:
            with cluster(work) as head:
                campaign = Campaign(work, head, objects, given.seed)
                signal.signal(signal.SIGTERM, lambda *_: setattr(campaign, "over", True))
                campaign.go_on(given.kills, time.monotonic() + given.seconds)
        finally:
            objects.kill()
    print("| killed | times | refused, and done again |\n|---|---|---|")
    for kind, times in sorted(campaign.kills.items()):
        print(f"| {kind} | {times} | {campaign.refused[kind]} |")
    print(f"\n{campaign.kills.total()} kills of seed {given.seed}, {len(campaign.wrong)} wrong")
    for line in campaign.wrong:
        print(line)
    return 1 if campaign.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
