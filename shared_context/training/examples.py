"""Training examples: a context, a prompt behind it and an answer, as token ids."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from shared_context.errors import TrainingDataError
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.training.data import Row

PASSAGE = "passage", "context"
"""Names of the field of a row that holds what its question is about, the first that is there."""

LONG_TEXT = "text", "passage"
"""The same of the field that holds a long text."""

CUE_WORDS = 6
"""Words of a passage that a question quotes, so that what follows them is asked for."""

QUOTED_WORDS = 12
"""Words that such a question asks for."""

CLOZE_WORDS = 8
"""Words of a sentence at most that a cloze quotes on each side of its gap."""

CLOZE_KEPT = 0.8
"""Share of those words that are left in, so that a question is no mere copy of its sentence."""

NAMED = re.compile(r"(?<=[\w,;] )[A-Z][\w'’-]*\w(?: (?:of |the |de |von )?[A-Z][\w'’-]*\w)*")
NUMBERED = re.compile(r"(?<!\w)\d[\d.,:]*\d%?(?!\w)|(?<!\w)\d+%?(?!\w)")
YEAR = re.compile(r"1\d{3}|20\d{2}")

FACTS = 3
"""Made-up facts at most that are put into a passage, one of which is asked for."""

CHAIN = 3
"""Things of the same weight in a chain of comparisons, one of which is weighed."""

THINGS = ("lamp", "river", "engine", "letter", "garden", "anchor", "window", "candle", "ladder", "mirror", "basket")
COLOURS = ("red", "blue", "green", "white", "black", "yellow", "silver", "golden", "purple", "orange", "brown", "grey")


@dataclass(frozen=True)
class Example:
    """One thing to learn from.

    Attributes:
        context: what is compressed.
        prompt: running text behind the context, up to where the answer begins; at least one token.
        answer: what the loss is computed on; at least one token.
    """

    context: tuple[int, ...]
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.context) + len(self.prompt) + len(self.answer)


class ExampleMaker:
    """Turns rows of a data file into examples in the prompt format that the model answers in.

    Args:
        model: whose tokenizer and prompt format.
        max_context: tokens of a context at most; longer ones of questions are cut around the answer.
        ended: answers end with the token that ends a turn, so that generation learns to stop.
    """

    def __init__(self, model: SharedLLMModel, max_context: int = 1024, *, ended: bool = True):
        self._model = model
        self._max_context = max_context
        self._end = model.ends[:1] if ended else ()
        # tokens of every prompt, whatever it asks, and of the answer's end
        self._frame = len(model.prompt_format.render([{"role": "user", "content": ""}], with_context=True)) + 1

    def answering(self, row: Row) -> Example:
        """A row with ``question``, ``answers`` and ``passage``; the answer is spelled as the passage spells it.

        Raises:
            TrainingDataError: something of it is missing or empty, with the row's place.
        """
        passage, question, answer, found = _fields(row)
        return self._asked(self._around(passage, found), question, answer)

    def check(self, row: Row) -> bool:
        """Whether the answer of a row stands in its passage.

        Raises:
            TrainingDataError: as :meth:`answering`; or question and answer do not fit the window beside a context.
        """
        _, question, answer, found = _fields(row)
        model = self._model
        beside = model.count_tokens(question) + model.count_tokens(answer) + self._frame
        if beside + self._max_context > model.context_window:
            raise TrainingDataError(
                f"{row.place}: prompt and answer take {beside} tokens, and beside max_context={self._max_context} "
                f"{model.name} reads {model.context_window - self._max_context}; shorten them or lower max_context."
            )
        return found is not None

    def quoting(self, passage: str, rng: random.Random) -> Example | None:
        """A question made from the passage itself: how does it go on? None where it is too short to ask that."""
        words = [match.span() for match in re.finditer(r"\S+", passage)]
        asked = CUE_WORDS + QUOTED_WORDS
        if len(words) < 2 * asked:
            return None
        first = rng.randrange(len(words) - asked + 1)
        cue = passage[words[first][0] : words[first + CUE_WORDS - 1][1]]
        answer = passage[words[first + CUE_WORDS][0] : words[first + asked - 1][1]]
        question = f'How does the text go on after "{cue}"?'
        span = words[first][0], words[first + asked - 1][1]
        return self._asked(self._around(passage, span), question, answer)

    def cloze(self, passage: str, rng: random.Random) -> Example | None:
        """A question made from a sentence with a gap: what belongs there? None where no sentence is long enough.

        The gap is mostly a name or a number, as most questions ask for one, else a few words (cf. the questions of
        arXiv 1906.04980, "Unsupervised Question Answering by Cloze Translation").
        """
        spans = [m.span() for pattern in (NAMED, NUMBERED) for m in pattern.finditer(passage)]
        words = [m.span() for m in re.finditer(r"\w[\w'’-]*", passage)]
        if len(words) < CLOZE_WORDS:
            return None
        if not spans or rng.random() < 0.25:
            first = rng.randrange(len(words))
            last = min(first + rng.randrange(4), len(words) - 1)
            spans = [(words[first][0], words[last][1])]
        start, end = rng.choice(spans)
        answer = passage[start:end]
        before, after = _sentence_around(passage, start, end)
        left = [word for word in before.split()[-CLOZE_WORDS:] if rng.random() < CLOZE_KEPT]
        right = [word for word in after.split()[:CLOZE_WORDS] if rng.random() < CLOZE_KEPT]
        if not left and not right:
            return None
        if NUMBERED.fullmatch(answer):
            asked = "Which year" if YEAR.fullmatch(answer) else "Which number"
        else:
            asked = "Who or what" if answer[0].isupper() else "What"
        gapped = " ".join([*left, "___", *right]).rstrip(".,;:!?")
        question = f"{asked} is missing here: {gapped}?"
        return self._asked(self._around(passage, (start, end)), question, answer)

    def continuing(self, passage: str, following: str) -> Example:
        """The text that follows a passage, as running text behind it."""
        context = self._model.tokenize(self._around(passage, None)).ids.tolist()
        running = self._model.tokenize(following).ids.tolist()
        return Example(tuple(context), tuple(running[:1]), tuple(running[1:]))

    def key_values(self, rng: random.Random, pairs: int = 8) -> Example:
        """A passage of made-up facts, one of which is asked for."""
        names = _things(rng, pairs)
        values = [str(rng.randrange(100, 1000)) for _ in names]
        passage = " ".join(f"The number of the {name} is {value}." for name, value in zip(names, values, strict=True))
        asked = rng.randrange(pairs)
        return self._asked(passage, f"What is the number of the {names[asked]}?", values[asked])

    def needle(self, passage: str, rng: random.Random) -> Example:
        """A passage with a made-up fact or a few between its sentences, one of which is asked for.

        After the single and multi-key needles of RULER (arXiv 2404.06654).
        """
        names = _things(rng, rng.randint(1, FACTS))
        codes = [str(rng.randrange(1000, 100_000)) for _ in names]
        for name, code in zip(names, codes, strict=True):
            ends = [0, *(m.end() for m in re.finditer(r"[.!?][\"'”’)]*\s+", passage)), len(passage)]
            at = rng.choice(ends)
            before, after = passage[:at].rstrip(), passage[at:].lstrip()
            passage = " ".join(filter(None, (before, f"The code of the {name} is {code}.", after)))
        start = passage.index(f"The code of the {names[0]} is {codes[0]}.")
        end = passage.index(".", start) + 1
        return self._asked(self._around(passage, (start, end)), f"What is the code of the {names[0]}?", codes[0])

    def tracking(self, rng: random.Random) -> Example:
        """Chains of comparisons in any order, of one of which all things are asked for.

        After RULER's variable tracking (arXiv 2404.06654): only the first thing of a chain is weighed, and what the
        others weigh has to be followed through it.
        """
        names = _things(rng, 2 * CHAIN)
        chains = names[:CHAIN], names[CHAIN:]
        grams = rng.sample(range(100, 1000), len(chains))
        facts = [f"The {chain[0]} weighs {weight} grams." for chain, weight in zip(chains, grams, strict=True)]
        facts += [f"The {b} weighs as much as the {a}." for chain in chains for a, b in pairwise(chain)]
        rng.shuffle(facts)
        *others, last = (f"the {name}" for name in chains[0])
        answer = f"{', '.join(others)} and {last}"
        return self._asked(" ".join(facts), f"Which things weigh {grams[0]} grams?", answer)

    def running(self, text: str, running_tokens: int) -> Iterator[Example]:
        """Stretches of a long text: as much context as there may be, then running text that is to be predicted."""
        ids = self._model.tokenize(text).ids.tolist()
        whole = self._max_context + running_tokens
        for start, end in pairwise(range(0, len(ids) + 1, whole)):
            context, running = ids[start : end - running_tokens], ids[end - running_tokens : end]
            yield Example(tuple(context), tuple(running[:1]), tuple(running[1:]))

    def _asked(self, passage: str, question: str, answer: str) -> Example:
        prompt = self._model.prompt_format.render([{"role": "user", "content": question}], with_context=True)
        answer_ids = self._model.tokenizer(answer, add_special_tokens=False)["input_ids"]
        context = tuple(self._model.tokenize(passage).ids.tolist())
        return Example(context, prompt.suffix, (*answer_ids, *self._end))

    def _around(self, passage: str, span: tuple[int, int] | None) -> str:
        """As much of a passage as may be a context, with the span in it."""
        bounds = self._model.tokenize(passage).bounds
        tokens = len(bounds) - 1
        if tokens <= self._max_context:
            return passage
        at = 0 if span is None else int(bounds.searchsorted(span[1]))
        start = min(max(0, at - self._max_context // 2), tokens - self._max_context)
        return passage[int(bounds[start]) : int(bounds[start + self._max_context])]


def _fields(row: Row) -> tuple[str, str, str, tuple[int, int] | None]:
    """Passage, question and answer of a row, and where in the passage the answer stands."""
    passage, question = row.text(*PASSAGE), row.text("question")
    answers = row.texts("answers", "answer")
    found = next(filter(None, (_find(passage, answer) for answer in answers)), None)
    return passage, question, answers[0] if found is None else passage[slice(*found)], found


def _find(passage: str, answer: str) -> tuple[int, int] | None:
    found = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", passage, re.IGNORECASE)
    return found.span() if found else None


def _things(rng: random.Random, count: int) -> list[str]:
    """Names of things, none twice."""
    return rng.sample([f"{colour} {thing}" for colour in COLOURS for thing in THINGS], count)


def _sentence_around(text: str, start: int, end: int) -> tuple[str, str]:
    """What stands before and behind a span in its own sentence."""
    before = re.split(r"[.!?][\"'”’)]*\s", text[:start])[-1]
    after = re.split(r"(?<=[.!?])[\"'”’)]*\s", text[end:], maxsplit=1)[0]
    return before, after
