"""`shared-context train`: a run from the command line, and what it refuses before a model is loaded."""

import json

import pytest
from typer.testing import CliRunner

from shared_context.cli.main import app
from shared_context.model.adapter import Adapter


def run(*args):
    return CliRunner().invoke(app, ["train", *(str(arg) for arg in args)])


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    passages = [f"In {1800 + i} the keeper of lamp {i} was Ann the {i}th. " * 2 for i in range(8)]
    made = [{"question": f"who keeps lamp {i}", "answers": ["Ann"], "passage": p} for i, p in enumerate(passages)]
    file.write_text("\n".join(map(json.dumps, made)))
    return file


@pytest.mark.slow
def test_a_run_is_made_refused_a_second_time_and_resumed(tmp_path, rows):
    args = [rows, "--output", tmp_path / "run", "--steps", 2, "--batch-size", 2, "--held-out", 3, "--evaluate-every", 2]
    args += ["--save-every", 1, "--rank", 2, "--ratios", "4:1,8:3", "--json"]
    book = tmp_path / "book.txt"
    book.write_text(" ".join(f"On day {i} Berta walked to the mill of Holm." for i in range(60)))
    args += ["--texts", book, "--texts", book, "--clozes", 1, "--quotes", 0.5]
    args += ["--needles", 1, "--tracking", 1, "--split-noise", 0.2, "--warmup", 1, "--log-every", 1]
    result = run(*args)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout[result.stdout.index("{\n") :])
    assert report["eval_gain"] == pytest.approx(report["eval_wrong"] - report["eval_right"])
    config = Adapter.from_pretrained(report["adapter"]).config
    assert (config.rank, config.ratios) == (2, (4, 8))
    assert config.rows == "importance"
    settings = json.loads((tmp_path / "run" / "training.json").read_text())
    assert settings["texts"] == [str(book)] * 2
    tasks = {"clozes": 1, "quotes": 0.5, "needles": 1, "tracking": 1, "key_values": 0.1}
    assert settings["tasks"] == settings["tasks"] | tasks
    assert (settings["cuts"]["split_noise"], settings["warmup"], settings["log_every"]) == (0.2, 1, 1)
    again = run(*args)
    assert (again.exit_code, "holds a run already" in again.stderr) == (1, True)
    assert run(*args, "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--ratios", "8"], 2, "--ratios"),
        (["--ratios", "0:1"], 1, "ratios"),
        (["--stage", "dreams"], 1, "stage"),
        (["--steps", "0"], 1, "steps=0"),
        (["--injection", "none"], 2, "--injection"),
        (["--split-noise", "1"], 1, "split_noise"),
        (["--upper-layers"], 1, "upper_layers"),
    ],
)
def test_wrong_settings_are_refused_before_a_model_is_loaded(tmp_path, rows, monkeypatch, args, code, message):
    monkeypatch.setattr("shared_context.SharedLLMModel.from_pretrained", None)
    result = run(rows, "--output", tmp_path / "run", *args)
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
