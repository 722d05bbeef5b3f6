"""``python -m shared_context.evaluation NAME``: measure, print the tables and targets. Without a name: all of them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from shared_context import SharedLLMModel
from shared_context.errors import SharedContextError
from shared_context.evaluation import answers, evidence, first_token, ingest, memory
from shared_context.evaluation.report import Report
from shared_context.model.pretrained import DEFAULT_MODEL

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
QUESTIONS = EXAMPLES / "handbook-questions.json"
TEXT = EXAMPLES / "handbook.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line says; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    runs = [args] if args.name else [parser.parse_args([name]) for name in MEASUREMENTS]
    for run in runs:
        try:
            report = MEASUREMENTS[run.name](run)
        except (SharedContextError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(report.markdown(), flush=True)
        if run.json:
            run.json.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", default=DEFAULT_MODEL, help="name or folder of the model (%(default)s)")
    common.add_argument("--json", type=Path, metavar="FILE", help="write the results here too, as JSON")
    parser = argparse.ArgumentParser(prog="python -m shared_context.evaluation", description=__doc__)
    commands = parser.add_subparsers(dest="name", metavar="NAME")

    def command(name: str, help: str, data: Path, limit: str | None = None) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[common], help=help)
        kind = "questions in SQuAD format" if data is QUESTIONS else "a text"
        added.add_argument("--data", type=Path, default=data, metavar="FILE", help=f"{kind} (the sample handbook's)")
        if limit is not None:
            added.add_argument("--limit", type=int, metavar="N", help=limit)
        return added

    command("evidence", "answers inside what is shown, against chunked RAG", QUESTIONS, "only so many questions")
    command("answers", "likelihood of the gold answers, against chunked RAG", QUESTIONS, "only so many questions")
    timed = command("first-token", "time to first token, against chunked RAG", QUESTIONS)
    timed.add_argument("--context-tokens", type=int, nargs="+", default=first_token.CONTEXT_TOKENS, metavar="N")
    timed.add_argument("--runs", type=int, default=5, help="questions that are counted (%(default)s)")
    peaks = command("memory", "peak memory of ingest and answers over a long document", TEXT)
    peaks.add_argument("--cache-mib", type=int, default=memory.CACHE_MIB, help="limit of the KV cache (%(default)s)")
    speed = command("ingest", "ingest of a long document, against a prefill", TEXT, "prefill only so many windows")
    for long in (peaks, speed):
        long.add_argument("--tokens", type=int, default=ingest.TOKENS, help="of the document (%(default)s)")
    return parser


def _load(args: argparse.Namespace) -> SharedLLMModel:
    return SharedLLMModel.from_pretrained(args.model)


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], Report]] = {
    "evidence": lambda a: evidence.measure(_load(a), a.data, limit=a.limit),
    "answers": lambda a: answers.measure(_load(a), a.data, limit=a.limit),
    "first-token": lambda a: first_token.measure(_load(a), a.data, context_tokens=a.context_tokens, runs=a.runs),
    "memory": lambda a: memory.measure(a.model, a.data, tokens=a.tokens, cache_mib=a.cache_mib),
    "ingest": lambda a: ingest.measure(_load(a), a.data, tokens=a.tokens, limit=a.limit),
}


if __name__ == "__main__":
    raise SystemExit(main())
