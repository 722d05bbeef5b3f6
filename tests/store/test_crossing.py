"""Two tenants of one store: nothing that one of them sees depends on what the other one does."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from shared_context import Document, SharedLLMContextStore, SharedLLMModel, StoreConfig, TreeConfig
from shared_context.errors import SharedContextError

CONFIG = StoreConfig(tree=TreeConfig(chunk_size=64, height=2), lead_in=16, max_document_bytes=2_000)
TENANTS = ("anna", "bert")
IDS = [f"paper {n}" for n in range(6)]
TOPICS = ["harbour", "kitchen", "archive"]
SENTENCES = [
    "The harbour master counts the boats at six in the evening.",
    "Soup is served in the kitchen from noon, with bread of the day before.",
    "The archive keeps ledger A-113 behind the second door.",
    "Das Archiv ist nicht offen, und der Schlüssel liegt auf dem Tisch.",
    "Le port est fermé dans la nuit, et les bateaux ne sortent pas.",
    "Nobody has counted the spoons since 1874.",
    "Ledger A-114 was lost when the harbour froze over.",
    "The cook rows to the lighthouse on Sundays, build 2.4.1 of the timetable says.",
]
QUESTIONS = ["When are boats counted?", "Where is ledger A-113?", "Wer hat den Schlüssel?", "spoons", "soup at noon?"]


def text(random: Random) -> str:
    return " ".join(random.choices(SENTENCES, k=random.randint(1, 12)))


def document(random: Random) -> Document:
    return Document(text(random), random.choice(IDS), {"topic": random.choice(TOPICS), "year": random.randint(1, 3)})


def shown(nodes: Any) -> list[tuple]:
    """All that a user sees of nodes or passages, but for the time of day."""
    told = [{k: v for k, v in (node.said or {}).items() if k != "time"} for node in nodes]
    return [
        (n.doc_id, n.start, n.end, n.text, n.level, n.ratio, n.score, n.kv_entries, dict(n.metadata), n.also_in, said)
        for n, said in zip(nodes, told, strict=True)
    ]


def selected(selection: Any) -> tuple:
    return selection.kv_entries, selection.budget, selection.policy, shown(selection.nodes), selection.text


def query(random: Random) -> dict[str, Any]:
    """Arguments of ``select``, some of which are refused."""
    options: dict[str, Any] = {"budget": random.choice([1, 16, 64, 256])}
    if random.random() < 0.5:
        options["policy"] = random.choice(["hybrid", "late_interaction", "lexical", "last_token", "embedding"])
    if random.random() < 0.3:
        options["filters"] = {"topic": random.choice(TOPICS)}
    if random.random() < 0.2:
        options["doc_ids"] = random.sample(IDS, 2)
    if random.random() < 0.2:
        options |= {"search": "split_and_search", "budget": None}
    elif random.random() < 0.2:
        options["recent"] = 16
    return options


def every_method(random: Random) -> list[tuple[int, Callable[[Random, SharedLLMContextStore, Path], Any]]]:
    """How often each method is called, and a call of it that says all that its caller sees."""
    return [
        (8, lambda r, s, _: s.add(document(r), replace=r.random() < 0.7)),
        (3, lambda r, s, _: s.add([document(r) for _ in range(3)], replace=True, atomic=r.random() < 0.5)),
        (2, lambda r, s, _: asyncio.run(s.aadd(document(r), replace=True))),
        (3, lambda r, s, _: s.update(r.choice(IDS), text(r), {"topic": r.choice(TOPICS)})),
        (2, lambda r, s, _: s.update(r.choice(IDS), metadata={"year": 9})),
        (3, lambda r, s, _: s.append(r.choice(IDS), " " + r.choice(SENTENCES))),
        (4, lambda r, s, _: s.delete(r.sample(IDS, 2))),
        (4, lambda r, s, _: s.delete(r.choice(IDS))),
        (3, lambda r, s, _: vars(s.get(r.choice(IDS)))),
        (2, lambda r, s, _: s.ids({"topic": r.choice(TOPICS)} if r.random() < 0.5 else None)),
        (2, lambda r, s, _: (len(s), r.choice(IDS) in s, [one.id for one in s])),
        (12, lambda r, s, _: selected(s.select(r.choice(QUESTIONS), **query(r)))),
        (2, lambda r, s, _: selected(s.select(r.choice(QUESTIONS), ratio=4))),
        (2, lambda r, s, _: selected(s.select(r.choice(QUESTIONS), show_metadata=True))),
        (2, lambda r, s, _: selected(asyncio.run(s.aselect(r.choice(QUESTIONS))))),
        (5, lambda r, s, _: shown(s.retrieve(r.choice(QUESTIONS), r.randint(1, 4)))),
        (1, lambda r, s, _: shown(asyncio.run(s.aretrieve(r.choice(QUESTIONS), 2)))),
        (2, lambda r, s, _: selected(s.selection_from([(r.choice(IDS), 0, 20)]))),
        (2, lambda r, s, _: s.warm(s.select(r.choice(QUESTIONS), budget=64))),
        (1, lambda r, s, _: s.warm()),
        (2, lambda r, s, _: s.model.nll("Why?", "So.", context=s.select(r.choice(QUESTIONS), budget=32))),
        (5, lambda r, s, _: s.conversation(r.choice("xy"), recent_tokens=20).append("user", r.choice(SENTENCES))),
        (2, lambda r, s, _: s.conversation(r.choice("xy")).messages()),
        (2, lambda r, s, _: s.conversation(r.choice("xy")).recent()),
        (3, lambda r, s, _: selected(s.conversation(r.choice("xy")).select(r.choice(QUESTIONS), budget=32))),
        (1, lambda r, s, _: s.conversation(r.choice("xy")).forget(r.randint(-3, 3))),
        (1, lambda r, s, _: s.conversation(r.choice("xy")).edit(0, r.choice(SENTENCES))),
        (1, lambda r, s, _: s.conversation(r.choice("xy")).regenerate()),
        (1, lambda r, s, _: s.conversation(r.choice("xy")).clear()),
        (2, lambda r, s, _: s.conversations()),
        (4, lambda r, s, _: s.stats()),
        (2, lambda r, s, _: (repr(s), s._repr_html_(), s.namespaces(), s.namespace_name, s.config)),
        (1, lambda r, s, _: s.limit_kv(r.choice([0, 300_000, 2**30]))),
        (1, lambda r, s, _: s.gc(r.choice([None, 0, 300_000]))),
        (1, lambda r, s, folder: persisted(s, folder)),
        (1, lambda r, s, folder: synced(r, s, folder)),
        (1, lambda r, s, _: s.compact() if r.random() < 0.2 else None),
        (1, lambda r, s, _: s.drop() if r.random() < 0.3 else None),
        (1, lambda r, s, _: s.namespace("inner")),
        (1, lambda r, s, _: s.close()),
    ]  # fmt: skip


def persisted(store: SharedLLMContextStore, folder: Path) -> tuple:
    target = folder / f"copy {len(list(folder.iterdir()))}"
    store.persist(target)
    with SharedLLMContextStore(store.model, target, embedder=None) as copy:
        return copy.ids(), copy.conversations(), copy.namespaces(), [vars(one) for one in copy]


def synced(random: Random, store: SharedLLMContextStore, folder: Path) -> Any:
    files = folder / "files"
    files.mkdir(exist_ok=True)
    (files / f"{random.randint(1, 3)}.txt").write_text(text(random))
    return vars(store.sync(files))


class Tenants:
    """What tenants see of a store of which all or one of them are users.

    Args:
        model: the store's.
        folder: where it is made.
        present: those who call; calls of the others are left out.
    """

    def __init__(self, model: SharedLLMModel, folder: Path, present: tuple[str, ...]):
        self.folder, self.present = folder, present
        for name in present:
            (folder / name).mkdir(parents=True)
        self.store = SharedLLMContextStore(model, folder / "store", config=CONFIG, embedder=None)
        self.handles: dict[str, SharedLLMContextStore] = {}
        self.seen: dict[str, list[str]] = {name: [] for name in present}

    def call(self, number: int, tenant: str) -> None:
        if tenant not in self.present:
            return
        random = Random(number)
        if number % 7 == 0:
            self.handles.pop(tenant, None)
        handle = self.handles.setdefault(tenant, self.store.namespace(tenant))
        methods = every_method(random)
        (method,) = random.choices([call for _, call in methods], [weight for weight, _ in methods])
        try:
            outcome = repr(method(random, handle, self.folder / tenant))
        except SharedContextError as error:
            outcome = f"{type(error).__name__}: {error}"
        # What was said bears the minute in which it was said.
        outcome = re.sub(r"\[\d{4}-\d\d-\d\d \d\d:\d\d\] ", "", outcome)
        self.seen[tenant].append(outcome.replace(str(self.folder), ""))


def check_calls(model: SharedLLMModel, folder: Path, count: int, seed: int) -> int:
    """Compare what each tenant sees beside the other one with what it sees alone; returns how often it compared."""
    order = [Random(f"{seed} {number}").choice(TENANTS) for number in range(count)]
    # Folders with names of one length: file paths are stored, and counted.
    together = Tenants(model, folder / "both", TENANTS)
    alone = [Tenants(model, folder / name, (name,)) for name in TENANTS]
    try:
        for number, tenant in enumerate(order):
            for tenants in (together, *alone):
                tenants.call(seed * 1_000_000 + number, tenant)
            (single,) = (one for one in alone if tenant in one.present)
            assert together.seen[tenant][-1] == single.seen[tenant][-1], f"seed {seed}, call {number} of {tenant}"
    finally:
        for tenants in (together, *alone):
            tenants.store.close()
    return count


def test_nothing_crosses_between_two_tenants(model, tmp_path):
    assert check_calls(model, tmp_path, 100, seed=1) == 100


@pytest.mark.slow
def test_nothing_crosses_between_two_tenants_in_ten_thousand_calls(model, tmp_path):
    assert sum(check_calls(model, tmp_path / str(seed), 1_000, seed) for seed in range(2, 12)) == 10_000
