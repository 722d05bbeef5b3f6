"""Answers under several contexts, each with its control."""

import json

import pytest

from shared_context import Document, SharedLLMContextStore, SharedLLMModel
from shared_context.errors import ConfigError
from shared_context.evaluation import answers
from shared_context.evaluation.contexts import ADAPTER, FULL, GOLD, INJECTED, NONE, RAG, WHOLE, shown_contexts
from shared_context.evaluation.questions import read_questions
from shared_context.evaluation.report import Lines


def rows(report, title):
    return {row[0]: row[1:] for table in report.tables() if table.title.startswith(title) for row in table.rows}


@pytest.fixture(scope="module")
def report(model, few_questions, tmp_path_factory):
    return answers.measure(model, few_questions, limit=4, budgets=[128, 256])


@pytest.mark.slow
def test_the_right_context_helps_and_a_wrong_one_does_not(report):
    ways = rows(report, "All ways")
    assert ways[GOLD][1] < ways[NONE][1]
    assert ways[f"{INJECTED}, 256"][1] < ways[NONE][1]
    for way, (right, wrong, difference, low, high) in rows(report, "NLL with the right context").items():
        assert difference == pytest.approx(right - wrong)
        assert low <= difference <= high
        assert difference < 0, way


@pytest.mark.slow
def test_every_way_but_none_has_its_control_and_answers(report):
    ways = rows(report, "All ways")
    named = [f"{way}, {budget}" for way in (INJECTED, FULL, RAG) for budget in (128, 256)] + [GOLD, WHOLE]
    assert set(ways) == {NONE, *named, *(f"control: {name}" for name in named)}
    for name, (tokens, _, _, _, *metrics) in ways.items():
        assert (None in metrics) is name.startswith("control: ")
        if ", 128" in name:
            assert tokens <= 128
    assert ways[GOLD][-1] > ways[NONE][-1]  # containment
    assert set(report.not_run) == {"selections by cross-attention injection", "the model with an adapter"}
    assert sum(isinstance(part, Lines) for part in report.parts) == 5


@pytest.mark.slow
def test_what_does_not_fit_the_window_is_reported(model, few_questions, monkeypatch):
    monkeypatch.setattr(model, "context_window", 500)
    report = answers.measure(model, few_questions, limit=2, budgets=[128, 4096])
    ways = rows(report, "All ways")
    assert f"{INJECTED}, 128" in ways and WHOLE not in ways
    assert "window" in report.not_run[WHOLE]


@pytest.mark.slow
def test_without_likelihoods_the_answers_are_the_same_and_there_are_no_controls(model, few_questions, report):
    alone, fewer = (
        answers.measure(model, few_questions, limit=4, budgets=[128, 256], likelihoods=False, ways=ways)
        for ways in ((), (INJECTED, GOLD))
    )
    answered = {name: row for name, row in rows(report, "All ways").items() if not name.startswith("control: ")}
    ways = rows(alone, "All ways")
    assert ways == {
        name: (tokens, None, None, None, *metrics) for name, (tokens, _, _, _, *metrics) in answered.items()
    }
    assert rows(alone, "F1 of") and not rows(alone, "NLL")
    assert sum(isinstance(part, Lines) for part in alone.parts) == 3
    few = rows(fewer, "All ways")
    assert set(few) == {f"{INJECTED}, 128", f"{INJECTED}, 256", GOLD}
    assert all(ways[name] == row for name, row in few.items())
    with pytest.raises(ConfigError, match="way='pasted'.*one of"):
        answers.measure(model, few_questions, ways=["pasted"])


@pytest.mark.slow
def test_an_adapter_is_measured_beside_the_model_with_controls_of_its_own(model, few_questions, tmp_path):
    untrained = SharedLLMModel.from_pretrained(injection="cross_attention", injection_layers=4)
    untrained.adapter().save_pretrained(tmp_path / "adapter")
    report = answers.measure(model, few_questions, adapter=tmp_path / "adapter", limit=1, budgets=[128])
    ways = rows(report, "All ways")
    for way in (INJECTED, FULL):
        assert {f"{way}{ADAPTER}, 128", f"control: {way}{ADAPTER}, 128"} <= set(ways)
    assert {f"{NONE}{ADAPTER}", f"{RAG}{ADAPTER}, 128", f"{RAG}, 128", f"{GOLD}{ADAPTER}"} <= set(ways)
    assert report.setting["adapter"] == untrained.adapter().digest
    assert report.not_run == {}


def test_questions_about_one_document_are_measured_without_controls(model, tmp_path):
    row = {"question": "What burns?", "answers": ["colza"], "passage": "The lamp burns colza, a pint a night."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    report = answers.measure(model, tmp_path / "rows.jsonl", budgets=[64], ways=[INJECTED])
    assert set(rows(report, "All ways")) == {f"{INJECTED}, 64"}
    (asked,) = report.questions
    (answer,) = asked.answers
    assert (asked.text, list(asked.gold)) == ("What burns?", ["colza"])
    assert answer.sources[0].document == asked.document and answer.sources[0].text.startswith("The lamp burns")
    assert set(answer.scores) == {"exact match", "F1", "containment", "NLL"} and answer.scores["NLL"] > 0
    not_run = rows(report, "Not run")
    assert not_run["a wrong context, the control of each way"] == ("all questions are about one document",)


def test_a_run_is_resumed_with_the_same_adapter_only(model, few_questions, tmp_path):
    for layers in (1, 2):
        untrained = SharedLLMModel.from_pretrained(injection="cross_attention", injection_layers=layers)
        untrained.adapter().save_pretrained(tmp_path / "adapter")
        options = {"adapter": tmp_path / "adapter", "limit": 1, "budgets": [64], "ways": [INJECTED]}
        options |= {"likelihoods": False, "resume": tmp_path / "state.jsonl"}
        if layers == 1:
            answers.measure(model, few_questions, **options)
        else:
            with pytest.raises(ConfigError, match="adapter"):
                answers.measure(model, few_questions, **options)


def test_a_run_that_is_resumed_with_more_questions_gives_what_a_fresh_one_gives(
    model, few_questions, tmp_path, monkeypatch
):
    monkeypatch.setattr(answers, "TOGETHER", 2)
    options = {"budgets": [64], "ways": [NONE], "resume": tmp_path / "state.jsonl"}
    answers.measure(model, few_questions, limit=3, **options)
    resumed = answers.measure(model, few_questions, limit=4, **options)
    fresh = answers.measure(model, few_questions, limit=4, **options | {"resume": None})
    assert resumed.as_json() == fresh.as_json()


def test_controls_come_from_documents_that_do_not_hold_the_answer(model, few_questions):
    asked = read_questions(few_questions, "article")
    question = asked.questions[0]

    with SharedLLMContextStore(model) as store:
        store.add([Document(text, id) for id, text in asked.documents.items()])
        shown = list(shown_contexts(question, asked, {"": store}, {}, [256], all_settings=False))
    texts = {context.key: context.context for context in shown}
    assert question.document in texts[f"{INJECTED}|256"].doc_ids
    assert question.document not in texts[f"control: {INJECTED}|256"].doc_ids
    tokens = {context.key: context.tokens for context in shown}
    assert tokens[f"control: {FULL}|256"] == pytest.approx(tokens[f"{FULL}|256"], abs=128)
    passage = question.passage
    assert texts[GOLD] == asked.documents[passage.document][passage.start : passage.end]
    assert texts[f"control: {GOLD}"] not in asked.documents[question.document]
    assert texts[WHOLE] == asked.documents[question.document] != texts[f"control: {WHOLE}"]


def test_what_is_computed_together_is_what_each_question_gives_alone(few_questions):
    exact = SharedLLMModel.from_pretrained(adapter=None, dtype="float32")
    asked = read_questions(few_questions, "article")
    questions = asked.questions[::4][:2]
    with SharedLLMContextStore(exact) as store:
        store.add([Document(text, id) for id, text in asked.documents.items()])
        shown = [(q, list(shown_contexts(q, asked, {"": store}, {}, [128], all_settings=False))) for q in questions]
        results = answers._results(shown, likelihoods=True)
        for (question, contexts), result in zip(shown, results, strict=True):
            for shown in contexts:
                nll = exact.nll(question.text, question.answers[0], context=shown.context)
                assert result[shown.key]["nll"] == pytest.approx(nll, abs=1e-3), shown.key
                assert result[shown.key]["tokens"] == shown.tokens
                if not shown.is_control:
                    alone = exact.generate(question.text, context=shown.context, max_new_tokens=answers.ANSWER_TOKENS)
                    assert result[shown.key]["answer"] == alone, shown.key
