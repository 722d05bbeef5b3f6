"""The parts of a query: what a long message asks is found by itself, however much stands around it."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from shared_context.store.passages import CJK

T = TypeVar("T")

WHOLE_TOKENS = 40
"""Up to here a query is compared as a whole: it is one question, and every word of it counts."""

PART_TOKENS = 64
"""A part has no more."""

MOST_PARTS = 32
"""Of a message that has more, the first and the last ones count."""

MOST_BESIDE = 8
"""Parts that ask nothing, where others do."""

BESIDE = 0.6
"""Weight of a part that asks nothing, where another one does."""

BEFORE = 0.85
"""Weight of a part that is not the last, where none asks."""

_MARKS = ".!?。！？｡．؟"
SENTENCE = re.compile(
    # Within a number or an address a mark ends none; behind Chinese and Japanese letters it does without a space.
    rf"[^{_MARKS}\n]*(?:(?:(?<![{CJK}])[.!?](?![\s\"')\]])|(?<=[{CJK}])\.(?=[\dA-Za-z]))[^{_MARKS}\n]*)*"
    rf"(?:[{_MARKS}]+[\"')\]」』]*|\n+|$)"
)

_QUESTION_MARK = re.compile(r"[?？؟][\"')\]」』]*\s*$")

_ASKS = re.compile(
    r"(?:(?:please|and|but|so|also|now|then|bitte|und)[, ]+)*(?:"
    r"who|whom|whose|what|when|where|which|why|how|tell me|explain|describe|list|name|find|show me|look up|"
    r"summari[sz]e|"
    r"can you|could you|would you|do you|i (?:want|need|would like|should like) to know|i wonder|"
    r"wer|wem|wen|wessen|was|wann|wo|woher|wohin|welche[rsnm]?|warum|wieso|wie|nenne?|erkläre?|"
    r"qui|que|quoi|quand|où|quelle?s?|pourquoi|comment|combien|"
    r"quién|qué|cuándo|dónde|cuál(?:es)?|cómo|cuánt[oa]s?"
    r")\b",
    re.IGNORECASE,
)
"""How sentences begin that ask without a question mark."""

_ASKS_AT_THE_END = re.compile(
    r"(?:[すうたるのいん]か|教えて(?:ください|下さい)?|知りたい(?:です)?|[吗嗎呢]|까요?|나요|니까)[。.｡．」』\s]*$"
)
"""How sentences end that ask without a question mark."""

_REFERS = re.compile(r"\b(?:it|its|they|them|their|this|that|these|those|there|he|him|his|she|her)\b", re.IGNORECASE)

_TURN = re.compile(
    r"^\s*[*_]*(user|human|assistant|ai|bot|system|q|a|question|answer|frage|antwort)[*_]*\s*:[*_]*\s*",
    re.IGNORECASE | re.MULTILINE,
)
"""What turns begin with in a conversation that was written out as one text."""

_TAG = re.compile(
    r"</?(?:chat_)?(?:context|conversation|documents?|history|input|instructions?|messages?|query|question|text|user"
    r"|assistant|system)>",
    re.IGNORECASE,
)
"""What prompts are put together with."""

_QUOTED = re.compile(
    r"[ \t]*(?:>"
    r"|\[?\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}"
    r"|\[?(?:\d{1,4}[./-]\d{1,2}[./-]\d{1,4},? )?\d{1,2}:\d{2}(?::\d{2})?(?: ?[ap]m)?\]?(?: -)? [^\n:]{1,30}: )"
)
"""How lines begin that others wrote: in a quoted mail, a chat that was copied, or a log."""

WRAPPED = 100
"""Characters; a shorter line may be one of several of a paragraph."""

_SENT_ALONG = re.compile(
    r"^--[ \t]*$|\d ?% (?:off|rabatt)|\b(?:"
    r"unsubscribe|click (?:here|below)|(?:buy|order|shop|book|call) (?:us )?(?:now|today)|free (?:delivery|shipping)|"
    r"(?:only|just) (?:this week|today|for a short time)|(?:limited|special) offer|get one free|money back|"
    r"follow us|sent from my|0800[- ]|toll[- ]free|"
    r"confidential(?:ity)?|privileged|intended (?:recipient|solely|for the)|notify the sender|"
    r"(?:received|sent) (?:to you )?(?:by mistake|in error)|before printing|accept no liability|registered office|"
    r"vat (?:no|number|reg)|(?:tel|phone|fax|mobile)\.?:? ?\+?\(?\d|"
    r"abbestellen|abmelden|hier klicken|klicken sie|jetzt (?:kaufen|bestellen|buchen|sichern|zugreifen)|nur (?:heute|"
    r"diese woche|für kurze zeit)|gratis|kostenloser versand|vertraulich\w*|(?:richtige|vorgesehene|bestimmte)r? "
    r"(?:adressat|empfänger)|irrtümlich|vor dem ausdrucken|amtsgericht|handelsregister|geschäftsführ\w+:|ust-?id\w*"
    r")",
    re.IGNORECASE | re.MULTILINE,
)
"""What adverts, signatures and notices of confidentiality say, which mail programs put around a message."""

_BLANK = re.compile(r"\n[ \t>]*\n")

_ANNOUNCED = re.compile(r"^[^:：]{1,60}[:：]\s+(?=\S+\s+\S+\s+\S)")
"""What announces a question: ``My question: how ...``."""


class QueryPart(NamedTuple):
    """A part of a query.

    Attributes:
        text: what is compared.
        weight: how much it counts, up to 1.
    """

    text: str
    weight: float = 1.0


def parts(text: str, count: Callable[[str], int]) -> list[QueryPart]:
    """What of a query is compared, each part by itself; the best one counts.

    A short query is one part. Of a longer one each sentence that asks is a part, together with the one before it where
    it refers to that; what stands between is cut into parts of several sentences, which weigh less. Where nothing is
    recognised as a question, the last part counts most. Of a conversation the last turn asks, and no earlier one. What
    is quoted, and an advert or a signature, asks where nothing else does.

    Args:
        text: the query, not blank.
        count: tokens of a text.
    """
    if count(text) <= WHOLE_TOKENS:
        return [QueryPart(text)]
    text = _TAG.sub("\n", text) if _TAG.sub("", text).strip() else text
    turns = list(_TURN.finditer(text))
    last_turn = turns[-1].start() if len(turns) > 1 else 0
    asked: list[QueryPart] = []
    told: list[str] = []
    before = ""
    sentences = list(_sentences(text, count))
    asking = {start for start, sentence in sentences if start >= last_turn and _asks(sentence)}
    asking = {start for start in asking if not _is_quoted(text, start)} or asking
    left_out = _sent_along(text, sentences)
    if asking <= left_out:
        left_out = set()
    for start, sentence in sentences:
        if start in left_out:
            before = ""
            continue
        if start in asking and _asks(sentence):
            asked.append(QueryPart(_ANNOUNCED.sub("", sentence)))
            if before and _REFERS.search(sentence) and count(f"{before} {sentence}") <= PART_TOKENS:
                asked.append(QueryPart(f"{before} {sentence}"))
        elif told and told[-1] == before and count(f"{before} {sentence}") <= PART_TOKENS:
            told[-1] = f"{before} {sentence}"
            before = told[-1]
            continue
        else:
            told.append(sentence)
        before = sentence
    if asked:
        return _some(asked, MOST_PARTS) + [QueryPart(each, BESIDE) for each in _some(told, MOST_BESIDE)]
    *others, last = _some(told, MOST_PARTS) or [text]
    return [*(QueryPart(each, BEFORE) for each in others), QueryPart(last)]


def _some(found: list[T], most: int) -> list[T]:
    """The first and the last ones; no more than ``most``."""
    return found if len(found) <= most else found[: most // 2] + found[-(most - most // 2) :]


def _asks(sentence: str) -> bool:
    return bool(_QUESTION_MARK.search(sentence)) or asks_by_its_words(sentence)


def asks_by_its_words(sentence: str) -> bool:
    """Whether a sentence begins or ends as questions and requests do, with a question mark or without."""
    return bool(_ASKS_AT_THE_END.search(sentence) or _ASKS.match(_ANNOUNCED.sub("", sentence)))


def _is_quoted(text: str, start: int) -> bool:
    """Whether the line that a character stands in is another's."""
    return bool(_QUOTED.match(text, text.rfind("\n", 0, start) + 1))


def _sent_along(text: str, sentences: Sequence[tuple[int, str]]) -> set[int]:
    """First characters of the sentences that are of an advert, a signature or the like: others around them say so."""
    marks = [mark.start() for mark in _SENT_ALONG.finditer(text)]
    paragraphs = [0, *(gap.end() for gap in _BLANK.finditer(text)), len(text)]
    found = set()
    for start, sentence in sentences if marks else ():
        begin = start
        while text[begin].isspace():
            begin += 1
        first, last = text.rfind("\n", 0, begin) + 1, text.find("\n", begin)
        last = len(text) if last < 0 else last
        if text[first:last].strip() == sentence and _asks(sentence):
            continue
        if last - first < WRAPPED:  # the paragraph goes on in the next line
            at = bisect_right(paragraphs, begin) - 1
            first, last = paragraphs[at], paragraphs[min(at + 1, len(paragraphs) - 1)]
        around = marks[bisect_left(marks, first) : bisect_left(marks, last)]
        if any(not begin <= mark < begin + len(sentence) for mark in around):
            found.add(start)
    return found


def _sentences(text: str, count: Callable[[str], int]) -> Iterator[tuple[int, str]]:
    """Sentences, and pieces of those that have too many tokens, each with its first character."""
    for found in SENTENCE.finditer(text):
        sentence = _TURN.sub("", found.group()).strip()
        if not sentence:
            continue
        pieces = -(-count(sentence) // PART_TOKENS)
        size = -(-len(sentence) // pieces)
        yield from ((found.start(), sentence[at : at + size].strip()) for at in range(0, len(sentence), size))
