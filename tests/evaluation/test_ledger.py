"""Runs that are stopped go on where they were."""

import pytest

from shared_context.errors import ConfigError
from shared_context.evaluation.ledger import Ledger

SETTINGS = {"measurement": "squares", "budgets": (1, 2)}


def run(path, keys, *, settings=SETTINGS, stop_at=None, together=1):
    """The squares of the keys, and which of them were computed."""
    computed = []

    def compute(some):
        if stop_at in some:
            raise KeyboardInterrupt
        computed.extend(some)
        return [{"square": int(key) ** 2} for key in some]

    try:
        results = Ledger(path, settings).results(keys, compute, together=together, what="squares")
    except KeyboardInterrupt:
        return None, computed
    return [result["square"] for result in results], computed


def test_a_run_that_was_stopped_computes_only_what_is_missing(tmp_path):
    path = tmp_path / "state"
    assert run(path, ["1", "2", "3", "4"], stop_at="3") == (None, ["1", "2"])
    assert run(path, ["1", "2", "3", "4"]) == ([1, 4, 9, 16], ["3", "4"])
    assert run(path, ["4", "1"]) == ([16, 1], [])


def test_what_is_computed_together_is_kept_together(tmp_path):
    path = tmp_path / "state"
    assert run(path, ["1", "2", "3", "4", "5"], together=2, stop_at="5") == (None, ["1", "2", "3", "4"])
    assert run(path, ["1", "2", "3", "4", "5"], together=2)[1] == ["5"]


def test_a_batch_of_which_a_result_is_missing_is_computed_anew_as_a_whole(tmp_path):
    path = tmp_path / "state"
    run(path, ["1", "2", "3", "4"], together=2)
    path.write_bytes(path.read_bytes()[:-5])
    assert run(path, ["1", "2", "3", "4"], together=2) == ([1, 4, 9, 16], ["3", "4"])
    run(path, ["1", "2", "3", "4", "5"], together=2)
    assert run(path, ["1", "2", "3", "4", "5", "6"], together=2) == ([1, 4, 9, 16, 25, 36], ["5", "6"])
    assert run(path, ["1", "2", "3", "4", "5", "6"], together=2)[1] == []


def test_without_a_file_nothing_is_kept():
    assert run(None, ["1", "2"]) == ([1, 4], ["1", "2"])


def test_a_line_that_was_cut_off_is_computed_again(tmp_path):
    path = tmp_path / "state"
    run(path, ["1", "2"])
    path.write_bytes(path.read_bytes()[:-5])
    assert run(path, ["1", "2"]) == ([1, 4], ["2"])
    assert run(path, ["1", "2"]) == ([1, 4], [])


def test_other_settings_are_refused_and_named(tmp_path):
    path = tmp_path / "state"
    run(path, ["1"])
    with pytest.raises(ConfigError, match=r"budgets was \[1, 2\] and is \[4\]"):
        run(path, ["1"], settings={**SETTINGS, "budgets": [4]})
    assert run(path, ["1"]) == ([1], [])


def test_results_of_stores_with_other_defaults_are_refused(tmp_path):
    path = tmp_path / "state"
    run(path, ["1"])
    former = path.read_text().replace("neighbour_weight=0.4", "neighbour_weight=0.9")
    assert former != path.read_text()
    path.write_text(former)
    with pytest.raises(ConfigError, match=r"store was .*neighbour_weight=0\.9.* and is .*neighbour_weight=0\.4"):
        run(path, ["1"])


@pytest.mark.parametrize("content", ["Dear all\n", "[1]\n", '{"question": "Why?"}\n'])
def test_a_file_that_is_something_else_is_left_alone(tmp_path, content):
    path = tmp_path / "letter"
    path.write_text(content)
    with pytest.raises(ConfigError, match="letter"):
        run(path, ["1"])
    assert path.read_text() == content
