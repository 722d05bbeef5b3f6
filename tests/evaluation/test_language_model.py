"""Likelihood of running text by context."""

import pytest

from shared_context import SharedLLMContextStore
from shared_context.errors import ConfigError
from shared_context.evaluation import language_model
from shared_context.evaluation.language_model import FULL, FULL_WRONG, NONE, RIGHT, WRONG
from shared_context.evaluation.report import Lines


def recited(first, second):
    """A text that says the same again and again: whoever sees what stands before knows what comes."""
    return f"The watchwords are {', '.join(f'{a} {b}' for a in first for b in second)}. " * 12


BIRDS = recited(("heron", "linnet", "bunting", "plover", "curlew"), ("north", "bell", "rope", "salt"))
TOOLS = recited(("anvil", "lantern", "chisel", "bellows", "mallet"), ("cobalt", "thistle", "ember", "quarry"))


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(language_model, "RUNNING", 128)


def test_the_right_context_makes_running_text_likelier(model, tmp_path):
    options = {"lengths": [256, 512, 1 << 20], "places": 1, "budget": 256}
    report = language_model.measure(model, [BIRDS, TOOLS], **options, resume=tmp_path / "state")
    (plot,) = [part for part in report.parts if isinstance(part, Lines)]
    nll = {line.name: [point.y for point in line.points] for line in plot.series}
    assert set(nll) == {RIGHT, WRONG, NONE, FULL, FULL_WRONG}
    for at in range(2):
        assert nll[RIGHT][at] < min(nll[WRONG][at], nll[NONE][at])
        assert nll[FULL][at] < nll[FULL_WRONG][at]
    assert list(report.not_run) == ["1,048,576 tokens"]
    gains, differences = (part.rows for part in report.parts[1:])
    for at, (length, gain, full, share) in enumerate(gains):
        assert length == (256, 512)[at]
        assert gain == pytest.approx(nll[WRONG][at] - nll[RIGHT][at])
        assert share == pytest.approx(gain / full)
    assert {row[1]: row[2] for row in differences if row[0] == 512}[WRONG] == pytest.approx(-gain)
    again = language_model.measure(model, [BIRDS, TOOLS], **options, resume=tmp_path / "state")
    assert again.as_json() == report.as_json()


def test_full_attention_that_does_not_fit_is_reported(model, monkeypatch):
    monkeypatch.setattr(model, "context_window", 700)
    report = language_model.measure(model, [BIRDS, TOOLS], lengths=[256, 512], places=1, budget=128)
    assert report.not_run[FULL].endswith(" 512 tokens")


def test_a_control_has_exactly_as_many_entries(model):
    with SharedLLMContextStore(model) as right, SharedLLMContextStore(model) as wrong:
        for store, text, tokens in (right, BIRDS, 300), (wrong, TOOLS, 280):
            store.add(text[: model.tokenize(text).bounds[tokens]], id="512")
        for recent in 0, 100:
            chosen, control = language_model._as_large(right, wrong, "Which bird stands north?", ["512"], 300, recent)
            assert 0 < chosen.kv_entries == control.kv_entries <= 280


def test_a_text_that_is_too_short_or_alone_is_refused(model, handbook):
    with pytest.raises(ConfigError, match="tokens only"):
        language_model.measure(model, ["Too short.", handbook])
    with pytest.raises(ConfigError, match="two or more"):
        language_model.measure(model, [handbook])
