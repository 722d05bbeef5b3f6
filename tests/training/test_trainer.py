"""Runs: they resume to the same losses, stop at broken numbers, and keep what was good."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from unittest.mock import ANY
from xml.etree import ElementTree

import pytest
import torch

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.errors import ConfigError, ModelMismatchError, TrainingDataError, TrainingError
from shared_context.model.adapter import Adapter
from shared_context.training import CutConfig, Tasks, TrainingConfig, average, train, validate
from shared_context.training.callbacks import StopAtBrokenGradients
from shared_context.training.objective import InjectionObjective
from shared_context.training.run_folder import ADAPTER_FOLDER, CURVES_FILE, HISTORY_FILE, last_checkpoint

SMALL = {
    "steps": 6,
    "batch_size": 3,
    "warmup": 1,
    "rank": 4,
    "alpha": 8.0,
    "distillation": 0.5,
    "held_out": 4,
    "evaluate_every": 3,
    "save_every": 2,
    "log_every": 1,
    "cuts": CutConfig({1: 1, 4: 1}, mixed=0.5, packed=0.5, distractors=0.5),
    "validation_ratio": 4,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {
            "question": f"who keeps lamp {i}",
            "answers": [f"Ann the {i}th"],
            "passage": f"In the year {1800 + i} the keeper of lamp {i} was Ann the {i}th. " * 4,
        }
        for i in range(24)
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "book.txt"
    file.write_text(" ".join(f"On day {i} Berta walked to the mill of Holm." for i in range(60)))
    return file


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, make_small_model, data, texts):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(make_small_model(), data, folder, TrainingConfig(**SMALL), texts=texts)
    return folder


def history(folder, *names):
    entries = json.loads((folder / HISTORY_FILE).read_text())
    return [{name: entry[name] for name in ("step", *names)} for entry in entries if names[0] in entry]


def test_a_run_leaves_history_checkpoints_and_an_adapter_that_serves(whole_run, make_small_model):
    assert [entry["step"] for entry in history(whole_run, "loss")] == [1, 2, 3, 4, 5, 6]
    for entry in history(whole_run, "eval_gain", "eval_right", "eval_wrong"):
        assert entry["eval_gain"] == pytest.approx(entry["eval_wrong"] - entry["eval_right"])
    assert last_checkpoint(whole_run).name == "checkpoint-6"
    adapter = Adapter.from_pretrained(whole_run / ADAPTER_FOLDER)
    assert adapter.config.tokens_seen > 6 * 3 * 30
    assert (adapter.config.base_model, adapter.config.rank, adapter.config.ratios) == ("small-0", 4, (1, 4))
    (*_, last) = history(whole_run, "eval_right", "eval_wrong", "eval_gain")
    assert f"| {last['eval_right']:.3f} | {last['eval_wrong']:.3f} | {last['eval_gain']:.3f} |" in adapter.card
    assert "- data: rows.jsonl, book.txt\n" in adapter.card
    assert list((whole_run / "runs").rglob("events.out.tfevents.*"))
    picture = ElementTree.parse(whole_run / CURVES_FILE).getroot()
    assert f"{last['step']}" in [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert f"fingerprint `{adapter.config.base_fingerprint}`" in adapter.card
    model = make_small_model()
    before = model.nll("who keeps lamp 3", "Ann", context="Ann keeps it.")
    model.load_adapter(adapter)
    assert model.nll("who keeps lamp 3", "Ann", context="Ann keeps it.") != before


def test_a_run_without_what_draws_has_no_picture_and_is_done_all_the_same(
    tmp_path, make_small_model, data, monkeypatch
):
    monkeypatch.setitem(sys.modules, "altair", None)
    settings = TrainingConfig(**SMALL | {"steps": 3})
    made = train(make_small_model(), data, tmp_path, settings)
    assert not (tmp_path / CURVES_FILE).exists()
    for checkpoint in tmp_path.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)  # nothing could be computed anew from
    assert train(make_small_model(), data, tmp_path, settings, resume=True).digest == made.digest


def test_a_resumed_run_gives_the_losses_of_an_unbroken_one(
    whole_run, tmp_path, make_small_model, data, texts, monkeypatch
):
    """Broken by a loss that is no number: the checkpoint before it is whole, and training goes on from there."""
    folder = tmp_path / "broken"
    forward = InjectionObjective.forward
    calls = iter(range(100))

    def breaks(self, examples):
        parts = forward(self, examples)
        return {**parts, "loss": parts["loss"] * (float("nan") if next(calls) == 4 else 1)}

    monkeypatch.setattr(InjectionObjective, "forward", breaks)
    advice = rf"loss is nan at step 5.*\(--start {folder}/checkpoint-4/adapter\).*--learning-rate.*--output"
    with pytest.raises(TrainingError, match=advice):
        train(make_small_model(), data, folder, TrainingConfig(**SMALL), texts=texts)
    monkeypatch.undo()
    assert last_checkpoint(folder).name == "checkpoint-4"
    Adapter.from_pretrained(folder / "checkpoint-4" / ADAPTER_FOLDER)

    # those that were cut off in writing are passed over, as are those that others put there
    for step, (file, kept) in enumerate([("optimizer.pt", 1000), ("rng_state.pth", 1000), ("rng_state.pth", 0)], 5):
        cut = folder / f"checkpoint-{step}"
        shutil.copytree(folder / "checkpoint-4", cut)
        content = (cut / file).read_bytes()[:kept]
        (cut / file).write_bytes(content) if content else (cut / file).unlink()
    shutil.copytree(folder / "checkpoint-4", folder / "checkpoint-best")
    assert last_checkpoint(folder).name == "checkpoint-4"
    train(make_small_model(), data, folder, TrainingConfig(**SMALL), texts=texts, resume=True)
    assert history(folder, "loss", "nll", "divergence") == history(whole_run, "loss", "nll", "divergence")
    assert history(folder, "eval_right", "eval_wrong") == history(whole_run, "eval_right", "eval_wrong")
    adapters = [Adapter.from_pretrained(run / ADAPTER_FOLDER) for run in (folder, whole_run)]
    assert adapters[0].config == adapters[1].config
    assert adapters[0].digest == adapters[1].digest


def test_an_ended_run_is_left_as_it_is(whole_run, tmp_path, make_small_model, data, texts):
    def files(folder):
        return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.rglob("*") if file.is_file()}

    stored, before = Adapter.from_pretrained(whole_run / ADAPTER_FOLDER), files(whole_run)
    resumed = train(make_small_model(), data, whole_run, TrainingConfig(**SMALL), texts=texts, resume=True)
    assert (resumed.digest, resumed.config) == (stored.digest, stored.config)
    assert files(whole_run) == before

    # stopped between its last checkpoint and its end
    folder = tmp_path / "unfinished"
    shutil.copytree(whole_run, folder)
    shutil.rmtree(folder / ADAPTER_FOLDER)
    (folder / CURVES_FILE).unlink()
    train(make_small_model(), data, folder, TrainingConfig(**SMALL), texts=texts, resume=True)
    ended = Adapter.from_pretrained(folder / ADAPTER_FOLDER)
    assert (ended.digest, ended.config, ended.card) == (stored.digest, stored.config, stored.card)
    assert (folder / CURVES_FILE).read_text() == (whole_run / CURVES_FILE).read_text()


def test_a_validation_that_is_no_number_stops_a_run_before_its_checkpoint(
    tmp_path, make_small_model, data, monkeypatch
):
    monkeypatch.setattr(InjectionObjective, "nll", lambda self, examples, ratio: [float("nan")] * len(examples))
    config = TrainingConfig(**{**SMALL, "evaluate_every": 4, "distillation": 0.0})
    with pytest.raises(TrainingError, match="eval_right is nan at step 4, which was not saved.*checkpoint-2/adapter"):
        train(make_small_model(), data, tmp_path, config)
    assert last_checkpoint(tmp_path).name == "checkpoint-2"
    assert [entry["step"] for entry in history(tmp_path, "loss")] == [1, 2, 3, 4]


def test_the_history_stays_json_where_a_figure_is_infinite(tmp_path, make_small_model, data, monkeypatch):
    forward = InjectionObjective.forward

    def steep(self, examples):
        parts = forward(self, examples)
        parts["loss"].register_hook(lambda gradient: gradient * 1e30)
        return parts

    monkeypatch.setattr(InjectionObjective, "forward", steep)
    train(make_small_model(), data, tmp_path, TrainingConfig(**{**SMALL, "steps": 1, "distillation": 0.0}))

    def refused(word):
        raise ValueError(f"{word} is no JSON")

    entries = json.loads((tmp_path / HISTORY_FILE).read_text(), parse_constant=refused)
    assert entries[0]["grad_norm"] is None


def test_gradients_that_are_no_numbers_stop_a_run_before_they_are_used(tmp_path, make_small_model, data, monkeypatch):
    forward = InjectionObjective.forward

    def breaks(self, examples):
        parts = forward(self, examples)
        parts["loss"].register_hook(lambda gradient: gradient * float("inf"))
        return parts

    monkeypatch.setattr(InjectionObjective, "forward", breaks)
    with pytest.raises(TrainingError, match="gradient of .* is no number at step 1"):
        train(make_small_model(), data, tmp_path, TrainingConfig(**SMALL))


def test_weights_that_are_no_numbers_are_not_saved(tmp_path, make_small_model, data, monkeypatch):
    """A launch that shows nobody its gradients, as DeepSpeed's does."""
    monkeypatch.setattr(StopAtBrokenGradients, "on_pre_optimizer_step", lambda *args, **kwargs: None)
    forward, calls = InjectionObjective.forward, iter(range(100))

    def breaks(self, examples):
        parts = forward(self, examples)
        if next(calls) == 3:
            parts["loss"].register_hook(lambda gradient: gradient * float("inf"))
        return parts

    monkeypatch.setattr(InjectionObjective, "forward", breaks)
    with pytest.raises(TrainingError, match=rf"no number after step 4.*\(--start {tmp_path}/checkpoint-2/adapter\)"):
        train(make_small_model(), data, tmp_path, TrainingConfig(**SMALL))
    assert last_checkpoint(tmp_path).name == "checkpoint-2"


def test_a_folder_with_a_run_is_not_written_over_nor_resumed_with_other_settings(whole_run, make_small_model, data):
    with pytest.raises(ConfigError, match="holds a run already"):
        train(make_small_model(), data, whole_run, TrainingConfig(**SMALL))
    with pytest.raises(ConfigError, match="learning_rate"):
        train(make_small_model(), data, whole_run, TrainingConfig(**{**SMALL, "learning_rate": 0.1}), resume=True)
    with pytest.raises(ConfigError, match="texts"):
        train(make_small_model(), data, whole_run, TrainingConfig(**SMALL), resume=True)


def test_a_run_of_deepspeed_is_not_resumed_without_it(whole_run, tmp_path, make_small_model, data, texts):
    """The Trainer would look for another optimizer's file, find none and begin a new one without a word."""
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    settings = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps({**settings, "zero_stage": 2}))
    with pytest.raises(ConfigError, match="zero_stage"):
        train(make_small_model(), data, folder, TrainingConfig(**SMALL), texts=texts, resume=True)


def test_a_run_is_resumed_with_its_own_base_model(whole_run, make_small_model, data, texts):
    with pytest.raises(ModelMismatchError, match="for small-0 .* and small-1 "):
        train(make_small_model(seed=1), data, whole_run, TrainingConfig(**SMALL), texts=texts, resume=True)
    other = make_small_model()
    other.hf_model.to(torch.bfloat16)
    with pytest.raises(ConfigError, match=r"settings=\['dtype'\]"):
        train(other, data, whole_run, TrainingConfig(**SMALL), texts=texts, resume=True)


def test_broken_data_stop_a_run_with_the_line(tmp_path, make_small_model, data):
    lines = data.read_text().splitlines()
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join([*lines[:9], '{"question":', *lines[9:]]))
    with pytest.raises(TrainingDataError, match=r"broken\.jsonl, line 10"):
        train(make_small_model(), broken, tmp_path / "run", TrainingConfig(**SMALL))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n".join([json.dumps({**json.loads(lines[0]), "passage": " "}), *lines[1:]]))
    with pytest.raises(TrainingDataError, match=r"empty\.jsonl, line 1: passage or context must be a text"):
        train(make_small_model(), empty, tmp_path / "run-2", TrainingConfig(**SMALL))
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(lines[:4]))
    with pytest.raises(TrainingDataError, match="held_out=4 leaves nothing to train on: the data have 4 rows"):
        train(make_small_model(), few, tmp_path / "run-3", TrainingConfig(**SMALL))
    with pytest.raises(TrainingDataError, match="1 held-out examples"):
        train(make_small_model(), few, tmp_path / "run-3", TrainingConfig(**{**SMALL, "held_out": 1}))


def test_broken_rows_stop_a_run_before_its_first_step_or_are_passed_over(
    tmp_path, make_small_model, data, texts, caplog
):
    config = TrainingConfig(**{**SMALL, "steps": 2, "evaluate_every": 2, "distillation": 0.0})
    lines = data.read_text().splitlines()
    row = json.loads(lines[0])
    broken = {"passage": "", "answers": [], "question": None, "answer": "far too long " * 700}
    file = tmp_path / "rows.jsonl"
    for field, value in broken.items():
        wrong = {**row, field: value}
        if field == "answer":
            del wrong["answers"]
        file.write_text("\n".join([*lines[:15], json.dumps(wrong), *lines[15:]]))
        with pytest.raises(TrainingDataError, match=r"line 16: (?s:.*)--skip-broken"):
            train(make_small_model(), file, tmp_path / field, config)
        assert not (tmp_path / field / HISTORY_FILE).exists()
        caplog.clear()
        train(make_small_model(), file, tmp_path / field, config, skip_broken=True)
        assert "A row is skipped" in caplog.text and "line 16" in caplog.text
    train(make_small_model(), data, tmp_path / "clean", config)
    for field in broken:
        assert history(tmp_path / field, "loss") == history(tmp_path / "clean", "loss")
    empty = tmp_path / "books.jsonl"
    empty.write_text(json.dumps({"text": texts.read_text()}) + '\n{"text": " "}')
    with pytest.raises(TrainingDataError, match=r"books\.jsonl, line 2: text or passage"):
        train(make_small_model(), data, tmp_path / "run", config, texts=empty)


def test_passages_that_are_held_out_are_not_trained_on_in_other_rows(
    tmp_path, make_small_model, data, monkeypatch, caplog
):
    lines = data.read_text().splitlines()
    held_out = [json.loads(line) for line in lines[-SMALL["held_out"] :]]
    again = [
        {**row, "question": f"which keeper is that of {i}", "answers": ["Nobody"]} for i, row in enumerate(held_out)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([*map(json.dumps, again), *lines]))
    model, seen = make_small_model(), set()
    forward = InjectionObjective.forward

    def noted(self, examples):
        seen.update(model.tokenizer.decode(example.context) for example in examples)
        return forward(self, examples)

    monkeypatch.setattr(InjectionObjective, "forward", noted)
    config = {**SMALL, "steps": 8, "distillation": 0.0, "tasks": Tasks(quotes=0.0, key_values=0.0)}
    train(model, file, tmp_path / "run", TrainingConfig(**config))
    assert len(seen) == len(lines) - len(held_out)
    assert not seen & {row["passage"] for row in held_out}
    (warning,) = [message for message in caplog.messages if "does not stand in their passage" in message]
    assert f"passage: 4, the first is {file}, line 1;" in warning


def test_settings_must_be_the_models(tmp_path, make_small_model, data):
    with pytest.raises(ConfigError, match="texts.*stage"):
        train(make_small_model(), data, tmp_path, TrainingConfig(stage="running_text"), texts=data)
    with pytest.raises(ConfigError, match="injection_layers=4"):
        train(make_small_model(injection_layers=2), data, tmp_path, TrainingConfig(**SMALL))
    with pytest.raises(ConfigError, match="injection='prefix'"):
        train(make_small_model(injection="cross_attention"), data, tmp_path, TrainingConfig(**SMALL))
    with pytest.raises(ConfigError, match="max_context=1024.*small-0 reads 1024"):
        train(make_small_model(window=1024), data, tmp_path, TrainingConfig(**SMALL))
    running = {**SMALL, "stage": "running_text", "max_context": 900}
    with pytest.raises(ConfigError, match="max_context=900.*256 running tokens.*small-0 reads 1024"):
        train(make_small_model(window=1024), data, tmp_path, TrainingConfig(**running))


@pytest.mark.parametrize("injection", ["prefix", "cross_attention"])
def test_a_model_stays_as_it_was_given_and_may_have_no_adapter(tmp_path, make_small_model, data, injection):
    config = TrainingConfig(**{**SMALL, "injection": injection, "steps": 2, "evaluate_every": 2, "distillation": 0.0})
    model = make_small_model(injection=injection)
    adapters = [train(model, data, tmp_path / name, config) for name in ("first", "second")]
    assert adapters[0].digest == adapters[1].digest
    losses = [history(tmp_path / name, "loss") for name in ("first", "second")]
    assert losses[0] == losses[1]
    figures = [validate(model, adapter, data, config) for adapter in adapters]
    assert figures[0] == figures[1]
    own = [getattr(m.adapter(), "digest", None) for m in (model, make_small_model(injection=injection))]
    assert own[0] == own[1]
    model.load_adapter(adapters[0])
    with pytest.raises(ConfigError, match="has an adapter loaded.*adapter=None.*start"):
        train(model, data, tmp_path / "third", config)
    with pytest.raises(ConfigError, match="has an adapter loaded"):
        validate(model, adapters[0], data, config)


def test_a_stage_starts_where_another_ended(whole_run, tmp_path, make_small_model, data):
    first = Adapter.from_pretrained(whole_run / ADAPTER_FOLDER)
    still = TrainingConfig(**{**SMALL, "steps": 1, "learning_rate": 1e-12, "warmup": 0, "evaluate_every": 1})
    second = train(make_small_model(), data, tmp_path / "second", still, start=first)
    for name, weight in first.weights.items():
        torch.testing.assert_close(second.weights[name], weight)
    assert second.config.tokens_seen > first.config.tokens_seen
    assert first.digest in second.card and "began with" not in first.card
    with pytest.raises(ConfigError, match="rank=8: is 4 in the adapter"):
        train(make_small_model(), data, tmp_path / "third", TrainingConfig(**{**SMALL, "rank": 8}), start=first)
    with pytest.raises(ConfigError, match="start"):
        train(make_small_model(), data, tmp_path / "second", still, resume=True)


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP_VERSION=.1.: set fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "WORLD_SIZE=.1.: FSDP .* two or more"),
    ],
)
def test_launches_that_cannot_share_the_base_model_are_refused(
    launch, message, tmp_path, make_small_model, data, monkeypatch
):
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        train(make_small_model(), data, tmp_path / "run", TrainingConfig(**SMALL))
    assert not (tmp_path / "run").exists()


def test_stages_are_averaged(whole_run, tmp_path, make_small_model, data):
    first = Adapter.from_pretrained(whole_run / ADAPTER_FOLDER)
    second = train(make_small_model(), data, tmp_path / "second", TrainingConfig(**SMALL), start=first)
    mean = average([first, second])
    for name, weight in mean.weights.items():
        assert weight.dtype == torch.bfloat16
        expected = (first.weights[name].float() + second.weights[name].float()) / 2
        assert torch.allclose(weight.float(), expected, rtol=1e-2, atol=1e-6)
    assert mean.config == second.config
    figures = validate(make_small_model(), mean, data, TrainingConfig(**SMALL))
    assert figures["eval_gain"] == pytest.approx(figures["eval_wrong"] - figures["eval_right"])
    card = average([first, second], ratio=4, figures=figures).card
    assert f"the mean of the weights of adapters `{first.digest}`, `{second.digest}`" in card
    assert "contexts at ratio 4:\n\n| right context | a wrong one" in card
    assert f"| {figures['eval_right']:.3f} |" in card
    make_small_model().load_adapter(mean)
    with pytest.raises(ConfigError, match="two or more"):
        average([first])
    with pytest.raises(ConfigError, match="no mean"):
        average([first, replace(second, config=replace(second.config, alpha=16.0))])


def test_validation_repeats_the_last_figures_of_a_run(whole_run, make_small_model, data):
    adapter = Adapter.from_pretrained(whole_run / ADAPTER_FOLDER)
    (*_, last) = history(whole_run, "eval_right", "eval_wrong", "eval_gain")
    # the adapter is kept in bfloat16, the run had float32
    figures = validate(make_small_model(), adapter, data, TrainingConfig(**SMALL))
    assert figures == pytest.approx({name: last[name] for name in figures}, abs=1e-2)
    before = [validate(make_small_model(), None, data, TrainingConfig(**SMALL)) for _ in range(2)]
    assert before[0] == before[1] and before[0]["eval_right"] > figures["eval_right"] + 0.1
    with pytest.raises(ConfigError, match="rank"):
        validate(make_small_model(), adapter, data, TrainingConfig(**{**SMALL, "rank": 8}))


@pytest.mark.slow
def test_two_processes_train_one_adapter(tmp_path, make_small_model, data):
    small = make_small_model()
    small.hf_model.save_pretrained(tmp_path / "small")
    small.tokenizer.save_pretrained(tmp_path / "small")
    ask = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "shared_context.cli.main", "train"]
    ask += [data, "--model", tmp_path / "small", "--output", tmp_path / "run", "--device", "cpu", "--json"]
    ask += ["--steps", 4, "--batch-size", 3, "--held-out", 4, "--evaluate-every", 2, "--save-every", 2, "--rank", 4]
    done = subprocess.run([sys.executable, "-m", *map(str, ask)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # one of them reports
    assert report["step"] == 4
    assert history(tmp_path / "run", "eval_gain") == [
        {"step": step, "eval_gain": gain} for step, gain in [(2, ANY), (4, report["eval_gain"])]
    ]
    assert last_checkpoint(tmp_path / "run", processes=2).name == "checkpoint-4"
    (tmp_path / "run" / "checkpoint-4" / "rng_state_1.pth").unlink()
    assert last_checkpoint(tmp_path / "run", processes=2).name == "checkpoint-2"
    trained = Adapter.from_pretrained(report["adapter"])
    assert trained.config.tokens_seen > 2 * 4 * 3 * 30  # what both saw
    assert any(weight.any() for name, weight in trained.weights.items() if ".up." in name)


RUN = """
import sys
from shared_context import SharedLLMModel
from shared_context.training import TrainingConfig, train

base, data, output, injection, resume = sys.argv[1:]
model = SharedLLMModel.from_pretrained(base, adapter=None, injection=injection, injection_layers=2, device="cpu")
whole = sum(weight.numel() for weight in model.hf_model.base_model.layers.parameters())
config = TrainingConfig(
    injection=injection, injection_layers=2, steps=4, batch_size=3, rank=4, held_out=4, evaluate_every=2, save_every=2,
    log_every=1,
)
train(model, data, output, config, resume=bool(resume))
held = [getattr(weight, "_local_tensor", weight) for weight in model.hf_model.base_model.layers.parameters()]
sys.stdout.write(f"{sum(weight.numel() for weight in held) / whole}\\n")  # at once: the other process writes as well
"""

LAUNCH = """
compute_environment: LOCAL_MACHINE
num_machines: 1
num_processes: 2
mixed_precision: 'no'
"""
FSDP = f"{LAUNCH}distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2\n"
DEEPSPEED = f"{LAUNCH}distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero_stage: 2\n"


@pytest.fixture
def launched(tmp_path, make_small_model, data):
    """Trains a small model in two processes and tells what share of the base model's layers each of them held."""
    small = make_small_model()
    small.hf_model.save_pretrained(tmp_path / "small")
    small.tokenizer.save_pretrained(tmp_path / "small")
    (tmp_path / "run.py").write_text(RUN)

    def run(name, injection, launch=None, resume=""):
        by = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        if launch is not None:
            (tmp_path / "launch.yaml").write_text(launch)
            by = ["accelerate.commands.launch", "--config_file", tmp_path / "launch.yaml"]
        ask = ["-m", *by, tmp_path / "run.py", tmp_path / "small", data, tmp_path / name, injection, resume]
        done = subprocess.run([sys.executable, *map(str, ask)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [float(line) for line in done.stdout.splitlines() if line.startswith(("0.", "1."))]

    return run


def undo_the_last_steps(folder):
    shutil.rmtree(folder / "checkpoint-4")
    shutil.rmtree(folder / ADAPTER_FOLDER)


@pytest.mark.slow
@pytest.mark.parametrize("injection", ["prefix", "cross_attention"])
def test_processes_that_share_the_base_model_train_the_same_adapter(tmp_path, launched, injection):
    assert launched("whole", injection) == [1.0, 1.0]
    assert launched("shared", injection, FSDP) == pytest.approx([0.5, 0.5], abs=0.01)
    figures = history(tmp_path / "shared", "loss", "grad_norm")
    assert len(figures) == 4 and figures == history(tmp_path / "whole", "loss", "grad_norm")
    trained = Adapter.from_pretrained(tmp_path / "whole" / ADAPTER_FOLDER)
    assert Adapter.from_pretrained(tmp_path / "shared" / ADAPTER_FOLDER).digest == trained.digest

    undo_the_last_steps(tmp_path / "shared")
    launched("shared", injection, resume="whole this time")
    assert Adapter.from_pretrained(tmp_path / "shared" / ADAPTER_FOLDER).digest == trained.digest


def test_deepspeed_may_not_shard_the_adapter(tmp_path, make_small_model, data, monkeypatch):
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(ConfigError, match="zero_stage=3: .*0 to 2.*FSDP"):
        train(make_small_model(), data, tmp_path / "run", TrainingConfig(**SMALL))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_deepspeed_shards_gradients_and_optimizer_and_resumes_its_checkpoints(tmp_path, launched):
    pytest.importorskip("deepspeed")
    launched("whole", "prefix")
    launched("sharded", "prefix", DEEPSPEED)
    figures = [[entry["loss"] for entry in history(tmp_path / run, "loss")] for run in ("sharded", "whole")]
    assert len(figures[0]) == 4 and figures[0] == pytest.approx(figures[1], abs=1e-4)
    adapter = Adapter.from_pretrained(tmp_path / "sharded" / ADAPTER_FOLDER)
    (last,) = (tmp_path / "sharded" / "checkpoint-4").glob("global_step*")
    assert len(list(last.glob("*optim_states.pt"))) == 2

    next(last.glob("*rank_1*optim_states.pt")).unlink()
    assert last_checkpoint(tmp_path / "sharded", processes=2).name == "checkpoint-2"
    undo_the_last_steps(tmp_path / "sharded")
    launched("sharded", "prefix", DEEPSPEED, resume="resume")
    assert Adapter.from_pretrained(tmp_path / "sharded" / ADAPTER_FOLDER).digest == adapter.digest


@pytest.mark.parametrize("injection", ["prefix", "cross_attention"])
def test_running_text_is_learned_from_too(tmp_path, make_small_model, injection):
    text = tmp_path / "book.txt"
    text.write_text(" ".join(f"In {1800 + i} the keeper of lamp {i} was Ann." for i in range(2000)))
    rows = tmp_path / "books.jsonl"
    rows.write_text("\n".join(json.dumps({"text": text.read_text()[i:]}) for i in (0, 9, 99, 999)))
    settings = {
        **SMALL, "stage": "running_text", "max_context": 48, "running_tokens": 16, "held_out": 2,
        "injection": injection, "injection_layers": 2, "distillation": 0.0, "learning_rate": 0.02, "steps": 30,
        "evaluate_every": 15,
    }  # fmt: skip
    train(make_small_model(injection=injection, injection_layers=2), rows, tmp_path / "run", TrainingConfig(**settings))
    losses = [entry["loss"] for entry in history(tmp_path / "run", "loss")]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_cross_attention_is_trained_for_a_model_in_bfloat16(tmp_path, data):
    base = SharedLLMModel.from_pretrained(
        adapter=None, injection="cross_attention", injection_layers=2, dtype="bfloat16"
    )
    settings = {**SMALL, "injection": "cross_attention", "injection_layers": 2, "steps": 2, "evaluate_every": 2}
    train(base, data, tmp_path, TrainingConfig(**{**settings, "distillation": 0.0}))
    trained = SharedLLMModel.from_pretrained(adapter=tmp_path / ADAPTER_FOLDER, dtype="bfloat16")
    untrained = SharedLLMModel.from_pretrained(adapter=None, dtype="bfloat16")
    assert (trained.injection.kind, trained.injection.layers) == ("cross_attention", 2)
    with SharedLLMContextStore(trained, embedder=None) as store:
        store.add("In the year 1807 the keeper of lamp 7 was Ann the 7th.", id="lamp")
        shown = store.select("who keeps lamp 7")
        assert trained.nll("who keeps lamp 7", "Ann the 7th", context=shown) != pytest.approx(
            untrained.nll("who keeps lamp 7", "Ann the 7th"), abs=1e-3
        )


@pytest.mark.slow
def test_a_small_run_learns_and_the_right_context_serves_better_than_a_wrong_one(tmp_path, data):
    base = SharedLLMModel.from_pretrained(adapter=None)
    settings = {**SMALL, "steps": 20, "learning_rate": 1e-3, "evaluate_every": 20, "save_every": 20}
    settings |= {"tasks": Tasks(quotes=0.0, key_values=0.0), "distillation": 0.0}
    train(base, data, tmp_path, TrainingConfig(**settings))
    losses = [entry["loss"] for entry in history(tmp_path, "loss")]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    (last,) = history(tmp_path, "eval_gain")
    assert last["eval_gain"] > 0.3
    model = SharedLLMModel.from_pretrained(adapter=None)
    served = SharedLLMModel.from_pretrained(adapter=tmp_path / ADAPTER_FOLDER)
    assert served.identity != model.identity
    assert served.fingerprint == model.fingerprint
    tokens = torch.arange(100, 140)
    codes = [m.compressor.first_layer_states([tokens])[0] for m in (served, model)]
    assert torch.equal(*codes)  # what retrieval is made of stays the base model's
