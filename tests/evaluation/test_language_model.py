"""Likelihood of running text by context."""

import pytest

from shared_context.errors import ConfigError
from shared_context.evaluation import language_model
from shared_context.evaluation.language_model import FULL, NONE, RIGHT, WRONG
from shared_context.evaluation.report import Lines

WATCHWORDS = "The watchwords of the week are " + ", ".join(
    f"{a} {b}" for a in ("heron", "anvil", "lantern", "cobalt", "thistle") for b in ("north", "bell", "rope", "salt")
)


@pytest.fixture
def recited():
    """A text that says the same again and again: whoever sees what stands before knows what comes."""
    return f"{WATCHWORDS}. " * 12


def test_the_right_context_makes_running_text_likelier(model, recited, handbook):
    report = language_model.measure(model, recited, handbook, lengths=[256, 1 << 20], places=2)
    (plot,) = [part for part in report.parts if isinstance(part, Lines)]
    nll = {line.name: line.points[0].y for line in plot.series}
    assert set(nll) == {RIGHT, WRONG, NONE, FULL}
    assert nll[RIGHT] < min(nll[WRONG], nll[NONE])
    assert list(report.not_run) == ["1,048,576 tokens"]
    differences = {row[1]: row[2] for row in report.parts[1].rows}
    assert differences[WRONG] == pytest.approx(nll[RIGHT] - nll[WRONG])


def test_full_attention_that_does_not_fit_is_reported(model, recited, handbook, monkeypatch):
    monkeypatch.setattr(model, "context_window", 900)
    report = language_model.measure(model, recited, handbook, lengths=[512], places=1, budget=128)
    assert "512 tokens" in report.not_run[FULL]


def test_a_text_that_is_too_short_is_refused(model, handbook):
    with pytest.raises(ConfigError, match="tokens only"):
        language_model.measure(model, "Too short.", handbook)
