"""Language modelling: the likelihood of running text by how much of what stands before it is in the store."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from shared_context import Document, Selection, SharedLLMContextStore, SharedLLMModel
from shared_context.config import require
from shared_context.evaluation.ledger import Ledger, reader_identity
from shared_context.evaluation.metrics import mean_with_interval, paired_difference, verdict
from shared_context.evaluation.report import Cell, Lines, Point, Report, Series, Table, Target, model_setting
from shared_context.model.tokenization import TokenizedText
from shared_context.store.embedder import Embedder, load_default_embedder

LENGTHS = (3072, 7168, 15_360, 31_744, 64_512, 130_048)
"""Tokens of the context: with the running text 4K to 128K."""

PLACES = 2
"""Places of each text that are measured."""

LEAD = 128
"""Tokens before the running text that stand in the prompt, and that the context is searched with."""

RUNNING = 1024
"""Tokens whose likelihood is measured."""

BUDGET = 4096
"""KV entries of a selection: half a window of 8K, of which the running text needs an eighth."""

RECENT = 2048
"""Tokens right before the lead that a selection opens first; the query finds the rest."""

PROMPT = "Go on with this text:\n\n{lead}"

PROMPT_ROOM = 128
"""Tokens of the window that are kept free for the prompt's own words when a context is pasted."""

NEARLY_ALL = 0.9
"""Share of a context that must fit the window for full attention over the rest to stand for it."""

NEARBY = 8
"""Tokens by which the beginning of a context may be moved."""

FROM, FALL = 7168, 0.9
"""From this length on the gain shall not fall below this share of what it is there."""

RIGHT, WRONG, NONE, FULL, FULL_WRONG = (
    "what stands before, selected and injected",
    "control: another text, selected and injected",
    "nothing but the lead",
    "what stands before, pasted: full attention",
    "control: another text, pasted: full attention",
)


def measure(
    model: SharedLLMModel,
    texts: Sequence[str],
    *,
    lengths: Sequence[int] = LENGTHS,
    places: int = PLACES,
    budget: int = BUDGET,
    recent: int = RECENT,
    seed: int = 0,
    resume: str | Path | None = None,
) -> Report:
    """Mean negative log-likelihood of running text, nats per token, by tokens of context.

    At each place the prompt holds a short lead, and the context is what stands before it: as much of it as there is KV
    budget for, its end and what the lead finds as the query. The control is selected with the same lead from as much
    of the next text, and has exactly as many KV entries.

    Args:
        model: reads; MiniLM embeds.
        texts: what is read, two or more; the last one's control is the first.
        lengths: tokens of the context; those that a text is too short for are reported as not run.
        places: where in each text, evenly spaced.
        budget: KV entries of a selection.
        recent: tokens right before the lead that a selection opens first.
        seed: of the intervals.
        resume: a file that keeps results as they come and from which a run that was stopped goes on.
    """
    require(len(texts) >= 2, "texts", len(texts), "must be two or more: each one's control is another")
    read = [_Text(text, model.tokenize(text)) for text in texts]
    count = min(len(text.tokens) for text in read)
    able = [length for length in sorted(lengths) if length + LEAD + RUNNING <= count]
    require(bool(able), "lengths", tuple(lengths), f"the shortest text has {count:,} tokens only")
    embedder = load_default_embedder()
    settings = {
        "measurement": "language-model",
        "texts": [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts],
        "model": reader_identity(model),
        "embedder": embedder.name,
        "lengths": able,
        "places": places,
        "budget": budget,
        "recent": recent,
    }
    keys = {f"{place}|{number}": (place, number) for place in range(places) for number in range(len(texts))}
    with _Stores(model, embedder, read, able, places) as stores:

        def compute(keys_now: list[str]) -> list[dict[str, float]]:
            return [_result(model, stores, *keys[key], able, budget, recent) for key in keys_now]

        results = Ledger(resume, settings).results(list(keys), compute, what="language model")
    not_run = {f"{n:,} tokens": f"a text has {count:,} tokens only" for n in sorted(lengths) if n not in able}
    setting = {
        **model_setting(model),
        "embedder": embedder.name,
        "texts": len(texts),
        "places of each": places,
        "running tokens": RUNNING,
        "budget": budget,
        "recent": recent,
    }
    return _report(setting, results, able, _pasted_most(model), not_run, seed)


@dataclass(frozen=True)
class _Text:
    """A text with its tokens."""

    text: str
    tokens: TokenizedText

    def between(self, start: int, end: int) -> str:
        """The characters of tokens ``[start, end)``."""
        return self.text[slice(*self.tokens.characters(start, end))]

    def start(self, end: int, tokens: int, model: SharedLLMModel) -> int:
        """Where a part of so many tokens begins, counted on their own, so that all its leaves but the last are whole.

        A word that is cut in two may be read as another number of tokens; then the part begins a few tokens away.
        """
        near = (end - tokens + step for step in sorted(range(-NEARBY, NEARBY + 1), key=abs))
        able = [start for start in near if start >= 0]
        exact = (start for start in able if len(model.tokenize(self.between(start, end))) == tokens)
        return next(exact, able[0])

    def place(self, number: int, places: int, longest: int) -> int:
        """Token with which the running text begins, at the ``number``-th of so many places."""
        first, last = longest + LEAD, len(self.tokens) - RUNNING
        return first + (last - first) * number // max(1, places - 1)


class _Stores:
    """Stores of what stands before the places of the texts; the two that were asked for last are kept.

    A store has the longest context in parts, so that the shorter contexts are its last parts: document ``n`` ends
    where the n-th length ends, counted backwards from the lead.
    """

    def __init__(
        self,
        model: SharedLLMModel,
        embedder: Embedder,
        texts: Sequence[_Text],
        lengths: Sequence[int],
        places: int,
    ):
        self.texts, self._places = texts, places
        self._model, self._embedder, self._lengths = model, embedder, lengths
        self._open: OrderedDict[tuple[int, int], SharedLLMContextStore] = OrderedDict()

    def begin(self, place: int, number: int) -> int:
        """Token of a text with which its lead begins."""
        return self.texts[number].place(place, self._places, self._lengths[-1]) - LEAD

    def at(self, place: int, number: int) -> SharedLLMContextStore:
        """The store of what stands before a place of a text."""
        store = self._open.pop((place, number), None)
        if store is None:
            while len(self._open) > 1:
                self._open.popitem(last=False)[1].close()
            store = SharedLLMContextStore(self._model, embedder=self._embedder)
            end, text = self.begin(place, number), self.texts[number]
            parts = []
            for near, far in pairwise((0, *self._lengths)):
                start = text.start(end, far - near, self._model)
                parts.append(Document(text.between(start, end), str(far)))
                end = start
            store.add(reversed(parts))
        self._open[place, number] = store
        return store

    def __enter__(self) -> _Stores:
        return self

    def __exit__(self, *_: object) -> None:
        for store in self._open.values():
            store.close()


def _result(
    model: SharedLLMModel, stores: _Stores, place: int, number: int, lengths: Sequence[int], budget: int, recent: int
) -> dict[str, float]:
    """NLL at one place by way and length; full attention only where nearly all fits the window."""
    other = (number + 1) % len(stores.texts)
    begin, elsewhere = stores.begin(place, number), stores.begin(place, other)
    read, unrelated = stores.texts[number], stores.texts[other]
    lead = read.between(begin, begin + LEAD)
    running = read.between(begin + LEAD, begin + LEAD + RUNNING)
    prompt = PROMPT.format(lead=lead)
    result = {NONE: model.nll(prompt, running)}
    for length in lengths:
        parts = [str(part) for part in lengths if part <= length]
        right, wrong = _as_large(stores.at(place, number), stores.at(place, other), lead, parts, budget, recent)
        result[f"{RIGHT}|{length}"] = model.nll(prompt, running, context=right)
        result[f"{WRONG}|{length}"] = model.nll(prompt, running, context=wrong)
        pasted = min(length, _pasted_most(model))
        if pasted >= NEARLY_ALL * length:
            for way, text, at in (FULL, read, begin), (FULL_WRONG, unrelated, elsewhere):
                result[f"{way}|{length}"] = model.nll(prompt, running, context=text.between(at - pasted, at))
    return result


def _as_large(
    right: SharedLLMContextStore,
    wrong: SharedLLMContextStore,
    query: str,
    parts: Sequence[str],
    budget: int,
    recent: int,
) -> tuple[Selection, Selection]:
    """A selection of each store, of exactly as many KV entries: for running text everything before it may matter.

    A text's last leaf is shorter than the others; where it makes a difference, only the best whole leaves of both stay.
    """
    chosen = right.select(query, budget=budget, doc_ids=parts, floor=0.0, recent=recent)
    control = wrong.select(query, budget=chosen.kv_entries, doc_ids=parts, floor=0.0, recent=recent)
    if control.kv_entries == chosen.kv_entries:
        return chosen, control
    leaf = right.config.tree.leaf_size
    whole = [[node for node in selection.nodes if node.kv_entries == leaf] for selection in (chosen, control)]
    count = min(map(len, whole))
    best = [sorted(nodes, key=lambda node: -node.score)[:count] for nodes in whole]
    return chosen.subset(best[0]), control.subset(best[1])


def _pasted_most(model: SharedLLMModel) -> int:
    """Tokens of a context that can be pasted."""
    return model.context_window - RUNNING - LEAD - PROMPT_ROOM


def _report(
    setting: Mapping[str, Cell],
    results: Sequence[Mapping[str, float]],
    lengths: Sequence[int],
    pasted_most: int,
    not_run: dict[str, str],
    seed: int,
) -> Report:
    nll = {key: [result[key] for result in results] for key in results[0]}
    series = {
        way: [_point(n, nll[key], seed) for n in lengths for key in (f"{way}|{n}", way) if key in nll]
        for way in (RIGHT, WRONG, NONE, FULL, FULL_WRONG)
    }
    outside = [f"{length:,}" for length in lengths if f"{FULL}|{length}" not in nll]
    if outside:
        not_run[FULL] = f"does not fit the model's window at {', '.join(outside)} tokens"
    differences = [
        (n, other, gain.mean, gain.low, gain.high, verdict(gain, more_is_better=False))
        for n in lengths
        for other in (WRONG, NONE, FULL)
        for key in (f"{other}|{n}", other)
        if key in nll
        for gain in [paired_difference(nll[f"{RIGHT}|{n}"], nll[key], seed=seed)]
    ]
    gains = {n: fmean(nll[f"{WRONG}|{n}"]) - fmean(nll[f"{RIGHT}|{n}"]) for n in lengths}
    shares = []
    for n in lengths:
        full = fmean(nll[f"{FULL_WRONG}|{n}"]) - fmean(nll[f"{FULL}|{n}"]) if f"{FULL}|{n}" in nll else None
        shares.append((n, gains[n], full, gains[n] / full if full else None))
    targets = [Target("least gain of the right context over the wrong one, nats", min(gains.values()), ">", 0.0)]
    later = [gain for n, gain in gains.items() if n > FROM]
    if FROM in gains and later:
        what = f"least gain beyond {FROM:,} tokens as a share of the gain there"
        targets.append(Target(what, min(later) / gains[FROM], ">=", FALL))
    return Report(
        "language-model",
        setting,
        [
            Lines(
                "Negative log-likelihood of running text: less is better",
                "tokens of context",
                "nats per token, mean",
                [Series(way, points) for way, points in series.items() if points],
                log_x=True,
            ),
            Table(
                "Gain of the right context over the wrong one, nats per token",
                ("tokens", "selected and injected", "full attention", "share"),
                shares,
            ),
            Table(
                f"NLL with {RIGHT}, minus that of others, paired, 95% interval over places",
                ("tokens", "others", "difference", "from", "to", "the first is"),
                differences,
                keys=2,
            ),
        ],
        targets=targets,
        not_run=not_run,
        notes=[
            f"The prompt holds the {LEAD} tokens before the running text; with them the context is searched. "
            "The prompt of all ways is the same, a user's message that asks to go on with the text. A control has "
            "exactly as many KV entries. An adapter answers behind a context only: what has none is read by the "
            f"untrained model. Where a context is longer than the {pasted_most:,} tokens that the window has room for, "
            "full attention reads the last of it."
        ],
    )


def _point(n: int, values: Sequence[float], seed: int) -> Point:
    mean = mean_with_interval(values, seed=seed)
    return Point(n, mean.mean, mean.low, mean.high)
