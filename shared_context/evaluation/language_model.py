"""Language modelling: the likelihood of running text by how much of what stands before it is in the store."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.config import require
from shared_context.errors import WindowExceededError
from shared_context.evaluation.ledger import Ledger, reader_identity
from shared_context.evaluation.long_text import repeat_to
from shared_context.evaluation.metrics import mean_with_interval, paired_difference, verdict
from shared_context.evaluation.report import Cell, Lines, Point, Report, Series, Table, model_setting
from shared_context.model.tokenization import TokenizedText
from shared_context.store.embedder import Embedder, load_default_embedder

LENGTHS = (1024, 4096, 16_384, 65_536, 131_072)
"""Tokens of the context."""

PLACES = 8
LEAD = 128
"""Tokens before the running text that stand in the prompt, and that the context is searched with."""

RUNNING = 256
"""Tokens whose likelihood is measured."""

BUDGET = 1024

PROMPT = "Go on with this text:\n\n{lead}"

RIGHT, WRONG, NONE, FULL = (
    "what stands before, selected and injected",
    "control: another text, selected and injected",
    "nothing but the lead",
    "what stands before, pasted whole: full attention",
)


def measure(
    model: SharedLLMModel,
    text: str,
    other: str,
    *,
    lengths: Sequence[int] = LENGTHS,
    places: int = PLACES,
    budget: int = BUDGET,
    seed: int = 0,
    resume: str | Path | None = None,
) -> Report:
    """Mean negative log-likelihood of running text, nats per token, by tokens of context.

    At each place the prompt holds a short lead, and the context is the text before it, or as much of another text.

    Args:
        model: reads; MiniLM embeds.
        text: what is read.
        other: a text that has nothing to do with it; its sections are repeated where it is too short.
        lengths: tokens of the context; those that the text is too short for are reported as not run.
        places: where in the text, evenly spaced.
        budget: KV entries of a selection.
        seed: of the intervals.
        resume: a file that keeps results as they come and from which a run that was stopped goes on.
    """
    read = _Text(text, model.tokenize(text))
    count = len(read.tokens)
    able = [length for length in sorted(lengths) if length + LEAD + RUNNING <= count]
    require(bool(able), "lengths", tuple(lengths), f"the text has {count:,} tokens only")
    first, last = able[-1] + LEAD, count - RUNNING
    ends = sorted({first + (last - first) * place // max(1, places - 1) for place in range(places)})
    repeated, embedder = repeat_to(model, other, able[-1]), load_default_embedder()
    elsewhere = _Text(repeated, model.tokenize(repeated))
    settings = {
        "measurement": "language-model",
        "texts": [hashlib.sha256(one.encode()).hexdigest()[:16] for one in (text, other)],
        "model": reader_identity(model),
        "embedder": embedder.name,
        "lengths": able,
        "budget": budget,
    }

    def compute(keys: list[str]) -> list[dict[str, float]]:
        return [_result(model, embedder, read, elsewhere, int(key), able, budget) for key in keys]

    results = Ledger(resume, settings).results([str(end) for end in ends], compute, what="language model")
    not_run = {f"{n:,} tokens": f"the text has {count:,} tokens only" for n in sorted(lengths) if n not in able}
    setting = {
        **model_setting(model),
        "embedder": embedder.name,
        "tokens of the text": count,
        "places": len(ends),
        "running tokens": RUNNING,
        "budget": budget,
    }
    return _report(setting, results, able, not_run, seed)


@dataclass(frozen=True)
class _Text:
    """A text with its tokens."""

    text: str
    tokens: TokenizedText

    def between(self, start: int, end: int) -> str:
        """The characters of tokens ``[start, end)``, as far as there are any."""
        return self.text[slice(*self.tokens.characters(max(0, start), min(end, len(self.tokens))))]


def _result(
    model: SharedLLMModel,
    embedder: Embedder,
    read: _Text,
    other: _Text,
    place: int,
    lengths: Sequence[int],
    budget: int,
) -> dict[str, float]:
    """NLL at one place by way and length; full attention only where it fits the window."""
    begin = place - LEAD
    lead, running = read.between(begin, place), read.between(place, place + RUNNING)
    prompt = PROMPT.format(lead=lead)
    result = {NONE: model.score(prompt, running)}
    for length in lengths:
        contexts = {RIGHT: read.between(begin - length, begin), WRONG: other.between(0, length)}
        for way, context in contexts.items():
            with SharedLLMContextStore(model, embedder=embedder) as store:
                store.add(context, id="context")
                selection = store.select(lead, budget=budget)
                result[f"{way}|{length}"] = model.score(prompt, running, context=selection)
        with contextlib.suppress(WindowExceededError):
            result[f"{FULL}|{length}"] = model.score(prompt, running, context=contexts[RIGHT])
    return result


def _report(
    setting: Mapping[str, Cell],
    results: Sequence[Mapping[str, float]],
    lengths: Sequence[int],
    not_run: dict[str, str],
    seed: int,
) -> Report:
    keys = [key for key in results[0] if all(key in result for result in results)]
    nll = {key: [result[key] for result in results] for key in keys}
    series = {
        way: [_point(n, nll[key], seed) for n in lengths for key in (f"{way}|{n}", way) if key in nll]
        for way in (RIGHT, WRONG, NONE, FULL)
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
                f"NLL with {RIGHT}, minus that of others, paired, 95% interval over places",
                ("tokens", "others", "difference", "from", "to", "the first is"),
                differences,
            ),
        ],
        not_run=not_run,
        notes=[
            f"The prompt holds the {LEAD} tokens before the running text; with them the context is searched. "
            "The prompt of all ways is the same, a user's message that asks to go on with the text."
        ],
    )


def _point(n: int, values: Sequence[float], seed: int) -> Point:
    mean = mean_with_interval(values, seed=seed)
    return Point(n, mean.mean, mean.low, mean.high)
