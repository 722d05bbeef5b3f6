"""Examples: what is asked is in the context, and the control is of the same length."""

import random
import re
from dataclasses import replace
from itertools import islice

import pytest

from shared_context.errors import TrainingDataError
from shared_context.training.data import Row
from shared_context.training.examples import ExampleMaker
from shared_context.training.streams import Tasks, other_contexts, question_stream, running_stream


def row(number: int, passage: str = "") -> Row:
    passage = passage or f"Passage {number} tells that the keeper of lamp {number} is Ann the {number}th. " * 6
    return Row({"question": f"who keeps lamp {number}", "answers": [f"ann the {number}TH"], "passage": passage}, "here")


@pytest.fixture
def maker(model):
    return ExampleMaker(model, ended=False)


def test_an_answer_is_spelled_as_in_its_passage(model, maker):
    example = maker.answering(row(7))
    assert model.tokenizer.decode(example.answer) == "Ann the 7th"
    assert "who keeps lamp 7" in model.tokenizer.decode(example.prompt)
    whole = model.prompt_format.render([{"role": "user", "content": "who keeps lamp 7"}], with_context=True)
    assert example.prompt == whole.suffix


def test_answers_end_their_turn_unless_they_are_only_scored(model, maker):
    ended = ExampleMaker(model).answering(row(7))
    assert ended.answer == (*maker.answering(row(7)).answer, model.tokenizer.eos_token_id)
    assert model.tokenizer.decode(ended.answer[-1:]) == "<|im_end|>"


def test_a_long_passage_is_cut_around_the_answer(model):
    passage = "Nothing is said here. " * 60 + "The keeper is Ann the 3th. " + "Nor is it said here. " * 60
    example = ExampleMaker(model, max_context=64).answering(row(3, passage))
    assert len(example.context) <= 65  # a cut text may split into one token more
    assert "Ann the 3th" in model.tokenizer.decode(example.context)


def test_a_quote_asks_for_what_follows_in_the_passage(model, maker):
    passage = " ".join(f"word{i}" for i in range(60))
    example = maker.quoting(passage, random.Random(0))
    cue = model.tokenizer.decode(example.prompt).split('"')[1]
    assert f"{cue} {model.tokenizer.decode(example.answer)}" in passage
    assert maker.quoting("too short a text", random.Random(0)) is None


def test_a_cloze_asks_for_what_fills_the_gap_of_a_sentence(model, maker):
    passage = "A stone house stands there. Since 1807 the keeper of the northern lamp was Ann Holm, none was better."
    seen = set()
    for seed in range(40):
        example = maker.cloze(passage, random.Random(seed))
        question = model.tokenizer.decode(example.prompt).split("Question: ")[1].split("?")[0]
        asked, _, gapped = question.partition(" is missing here: ")
        answer = model.tokenizer.decode(example.answer)
        before, _, after = gapped.partition("___")
        left, right = passage.split(answer, 1)
        assert set(before.split()) <= set(left.split())
        assert set(after.split()) <= {word.rstrip(".,") for word in right.split()} | set(right.split())
        seen.add((asked, answer))
    assert {("Which year", "1807"), ("Who or what", "Ann Holm")} <= seen
    assert len(seen) > 2, "only names and numbers were asked for"
    assert maker.cloze("Too short a text.", random.Random(0)) is None


def test_made_up_facts_hold_the_answer(model, maker):
    example = maker.key_values(random.Random(1))
    thing = model.tokenizer.decode(example.prompt).split("number of the ")[1].split("?")[0]
    answer = model.tokenizer.decode(example.answer)
    assert f"The number of the {thing} is {answer}." in model.tokenizer.decode(example.context)


def test_a_needle_stands_between_the_sentences_of_its_passage(model, maker):
    sentences = ["A stone house stands there.", "It was built in 1807.", "Nobody has lived in it since."]
    numbers = set()
    for seed in range(30):
        example = maker.needle(" ".join(sentences), random.Random(seed))
        context, answer = (model.tokenizer.decode(ids) for ids in (example.context, example.answer))
        asked = model.tokenizer.decode(example.prompt).split("What is the code of the ")[1].split("?")[0]
        assert f"The code of the {asked} is {answer}." in context
        facts = re.findall(r"The code of the [a-z]+ [a-z]+ is \d+\.", context)
        rest = context
        for fact in facts:
            rest = rest.replace(fact, "")
        assert rest.split() == " ".join(sentences).split()
        numbers.add(len(facts))
    assert numbers == {1, 2, 3}
    long = ExampleMaker(model, max_context=64).needle("Nothing is said here. " * 60, random.Random(1))
    assert len(long.context) <= 65
    assert model.tokenizer.decode(long.answer).removesuffix("<|im_end|>") in model.tokenizer.decode(long.context)


def test_tracking_asks_for_all_that_weigh_the_same(model, maker):
    for seed in range(10):
        example = maker.tracking(random.Random(seed))
        context = model.tokenizer.decode(example.context)
        weight = model.tokenizer.decode(example.prompt).split("Which things weigh ")[1].split(" grams")[0]
        same = dict(re.findall(r"The (\w+ \w+) weighs as much as the (\w+ \w+)\.", context))
        weights = dict(re.findall(r"The (\w+ \w+) weighs (\d+) grams\.", context))

        while len(weights) < 6:
            weights |= {name: weights[other] for name, other in same.items() if other in weights}
        answer = re.findall(r"the (\w+ \w+)", model.tokenizer.decode(example.answer))
        assert sorted(answer) == sorted(name for name, its in weights.items() if its == weight)
        assert len(answer) == 3


def test_running_text_follows_its_context(model, maker):
    text = " ".join(str(i) for i in range(3000))
    examples = list(ExampleMaker(model, max_context=200).running(text, 50))
    assert all((len(e.context), len(e.prompt), len(e.answer)) == (200, 1, 49) for e in examples)
    ids = model.tokenize(text).ids.tolist()
    assert [t for e in examples for t in (*e.context, *e.prompt, *e.answer)] == ids[: 250 * len(examples)]


def test_wrong_contexts_are_as_long_and_others(maker):
    examples = [maker.answering(row(i)) for i in range(4)]
    for example, wrong in zip(examples, other_contexts(examples), strict=True):
        assert (wrong.prompt, wrong.answer) == (example.prompt, example.answer)
        assert len(wrong.context) == len(example.context)
        assert wrong.context != example.context
    for few in (examples[:1], [examples[0], replace(examples[1], context=examples[0].context)]):
        with pytest.raises(TrainingDataError, match="needs more"):
            other_contexts(few)


def test_a_wrong_context_is_wrong_where_neighbours_share_theirs(maker):
    mine, theirs = maker.answering(row(1)), maker.answering(row(2))
    examples = [mine, replace(mine, answer=mine.answer[:1]), theirs, replace(theirs, prompt=mine.prompt)]
    for example, wrong in zip(examples, other_contexts(examples), strict=True):
        size = min(len(mine.context), len(theirs.context))
        other = theirs if example.context == mine.context else mine
        assert wrong.context[:size] == other.context[:size]


def long_texts(words: int = 400) -> list[Row]:
    return [Row({"text": " ".join(f"{name}{i}." for i in range(words))}, "there") for name in ("one", "two")]


def test_passages_of_long_texts_are_asked_about_and_continued_beside_the_rows(model, maker):
    tasks = Tasks(quotes=1, clozes=0, key_values=0, texts=1, continuations=1)
    stream = question_stream(lambda: map(row, range(3)), maker, tasks, seed=0, texts=long_texts)
    kinds = list(islice(stream, 12))
    for answered, quoted, of_text, continued in zip(*(kinds[n::4] for n in range(4)), strict=True):
        assert answered.context == quoted.context
        passage = model.tokenizer.decode(continued.context)
        assert of_text.context == continued.context
        assert "lamp" not in passage
        whole = next(text.text("text") for text in long_texts() if passage in text.text("text"))
        following = model.tokenizer.decode((*continued.prompt, *continued.answer))
        assert passage + following in whole
    with pytest.raises(TrainingDataError, match="88 words"):
        list(islice(question_stream(lambda: [row(1)], maker, tasks, seed=0, texts=lambda: long_texts(87)), 9))


def test_streams_repeat_with_their_seed_and_refuse_emptiness(maker):
    def first(seed: int) -> list:
        tasks = Tasks(quotes=0.5, clozes=0.5, key_values=0.5, needles=0.5, tracking=0.5)
        stream = question_stream(lambda: map(row, range(9)), maker, tasks, seed=seed, texts=long_texts)
        return list(islice(stream, 60))

    assert first(1) == first(1)
    assert first(1) != first(2)
    with pytest.raises(TrainingDataError, match="no rows"):
        next(question_stream(list, maker, Tasks(), seed=0))
    short = Row({"text": "too short"}, "here")
    with pytest.raises(TrainingDataError, match="no text is as long"):
        next(running_stream(lambda: [short], maker, seed=0, running_tokens=8))
