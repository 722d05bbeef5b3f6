"""What was measured of answers as a report: curves, differences, and each question with what was said to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from shared_context.evaluation.contexts import (
    ADAPTER,
    CONTROL,
    INJECTED,
)
from shared_context.evaluation.metrics import (
    containment,
    exact_match,
    f1,
    mean_with_interval,
    paired_difference,
    verdict,
)
from shared_context.evaluation.questions import Question
from shared_context.evaluation.report import (
    Answer,
    AskedQuestion,
    Exhibit,
    Lines,
    Point,
    Report,
    Series,
    Source,
    Table,
)

METRICS = {"exact match": exact_match, "F1": f1, "containment": containment}


def report_of(
    setting: dict[str, Any],
    results: Sequence[Mapping[str, Any]],
    questions: Sequence[Question],
    budgets: Sequence[int],
    not_run: dict[str, str],
    seed: int,
) -> Report:
    """The report of what was measured.

    Args:
        setting: of the run, by name.
        results: for each question what was found by each way of showing.
        questions: what was asked.
        budgets: the sizes that were compared.
        not_run: what was left out, with the reason; what does not fit a window is added.
        seed: of the intervals.
    """
    gold = [question.answers for question in questions]
    keys = list(dict.fromkeys(key for result in results for key in result))
    for key in list(keys):
        missing = sum(key not in result for result in results)
        if missing:
            keys.remove(key)
            not_run[title_of(key)] = f"for {missing} of {len(results)} questions it does not fit the model's window"
    nll = {key: [result[key]["nll"] for result in results] for key in keys if "nll" in results[0][key]}
    tokens = {key: fmean(result[key]["tokens"] for result in results) for key in keys}
    answered = [key for key in keys if not key.startswith(CONTROL)]
    quality = {
        (name, key): [metric(r[key]["answer"], g) for r, g in zip(results, gold, strict=True)]
        for key in answered
        for name, metric in METRICS.items()
    }

    def curves(values: Mapping[str, Sequence[float]], keys: Sequence[str]) -> list[Series]:
        ways = list(dict.fromkeys(key.partition("|")[0] for key in keys))
        points = {
            way: [_point(n, values[key], seed) for n in budgets for key in (f"{way}|{n}", way) if key in values]
            for way in ways
        }
        return [Series(way, several) for way, several in points.items() if several]

    def differences(values: Mapping[str, Sequence[float]], *, more_is_better: bool) -> list[tuple]:
        """The selection's values minus those of every other way that the same weights answer."""
        return [
            (
                n,
                title_of(ours),
                title_of(other),
                tokens[other],
                gain.mean,
                gain.low,
                gain.high,
                verdict(gain, more_is_better=more_is_better),
            )
            for n in budgets
            for ours in (f"{INJECTED}|{n}", f"{INJECTED}{ADAPTER}|{n}")
            for other in answered
            if ours in values and other != ours and other.partition("|")[2] in ("", str(n))
            if other.partition("|")[0].endswith(ADAPTER) == (ADAPTER in ours)
            for gain in [paired_difference(values[ours], values[other], seed=seed)]
        ]

    against_control = [
        (title_of(key), fmean(nll[key]), fmean(nll[CONTROL + key]), gain.mean, gain.low, gain.high)
        for key in answered
        if CONTROL + key in nll
        for gain in [paired_difference(nll[key], nll[CONTROL + key], seed=seed)]
    ]
    parts: list[Exhibit] = [
        *(
            Lines(
                f"Negative log-likelihood of the gold answer, {of}: less is better",
                "KV entries or tokens allowed",
                "nats per token, mean",
                curves(nll, some),
                log_x=True,
            )
            for of, some in (
                ("with the right context", answered),
                ("with a wrong one, the control", [key for key in keys if key not in answered]),
            )
            if nll
        ),
        *(
            Lines(
                f"Answers, {name}: more is better",
                "KV entries or tokens allowed",
                "mean over questions",
                curves({key: quality[name, key] for key in answered}, answered),
                log_x=True,
            )
            for name in METRICS
        ),
        Table(
            "All ways; 95% interval over questions",
            ("context", "tokens shown", "NLL", "from", "to", *METRICS),
            [
                (
                    title_of(key),
                    tokens[key],
                    *((interval.mean, interval.low, interval.high) if interval else (None, None, None)),
                    *(fmean(quality[name, key]) if key in answered else None for name in METRICS),
                )
                for key in keys
                for interval in [mean_with_interval(nll[key], seed=seed) if key in nll else None]
            ],
        ),
        *(
            Table(
                f"{name} of {INJECTED}, minus that of others by the same weights, paired, 95% interval over questions",
                ("budget", "selection", "minus", "tokens shown there", "difference", "from", "to", "the selection is"),
                differences(values, more_is_better=more_is_better),
                keys=3,
            )
            for name, values, more_is_better in (
                ("NLL", nll, False),
                ("F1", {key: quality["F1", key] for key in answered}, True),
            )
            if values
        ),
        Table(
            "NLL with the right context minus that with a wrong one, paired, 95% interval over questions",
            ("context", "right", "wrong", "difference", "from", "to"),
            against_control,
        ),
    ]

    def asked(question: Question, result: Mapping[str, Any]) -> AskedQuestion:
        answers = [
            Answer(
                title_of(key),
                found["answer"],
                found["tokens"],
                {name: metric(found["answer"], question.answers) for name, metric in METRICS.items()}
                | ({"NLL": found["nll"]} if "nll" in found else {}),
                [Source(**source) for source in found.get("sources", ())],
            )
            for key, found in result.items()
            if "answer" in found
        ]
        return AskedQuestion(question.text, question.answers, question.document, answers)

    return Report(
        "answers",
        setting,
        parts,
        questions=[asked(question, result) for question, result in zip(questions, results, strict=True)],
        not_run=not_run,
        notes=[
            "What has no budget of its own is drawn as a level line. The question's own document is what retrieval "
            "would have to find first: nobody else is told which document it is. Controls show as many tokens of other "
            "documents, chosen for another question; of them only the likelihood is measured. The controls of the gold "
            "paragraph and of the whole document are another question's, whole, of whatever length they have: the "
            "table has their tokens.",
            "A selection may leave out what is far below its best leaf (StoreConfig.floor); without the floor it "
            "spends the whole budget. All ways use the same prompt, and pasted text stands where the injected "
            "selection does.",
        ],
    )


def title_of(key: str) -> str:
    """A way of showing as readers see it, with its budget where it has one."""
    way, _, budget = key.partition("|")
    return f"{way}, {int(budget):,}" if budget else way


def _point(x: int, values: Sequence[float], seed: int) -> Point:
    interval = mean_with_interval(values, seed=seed)
    return Point(x, interval.mean, interval.low, interval.high)
