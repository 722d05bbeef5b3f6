"""The objective computes what serving computes."""

from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, Olmo3Config

from shared_context import SharedLLMModel
from shared_context.errors import UnsupportedModelError
from shared_context.model.adapter import Adapter, AdapterConfig
from shared_context.model.attention import ATTENTION
from shared_context.model.context import CoarseKV, ContextKV
from shared_context.model.prompt import Prompt
from shared_context.training.examples import Example
from shared_context.training.layout import CutConfig, LayoutMaker
from shared_context.training.objective import InjectionObjective
from shared_context.tree import important_rows

RATIOS = {1: 1, 4: 1, 8: 1}


class Shown:
    """What a layout shows to one example, as serving is given it."""

    def __init__(self, model, layout, number):
        pieces = layout.shown[number]
        kv = model.compressor.encode([torch.tensor(chunk) for chunk in layout.chunks])
        ids = [layout.chunks[chunk][row] for chunk, rows in pieces for row in rows]
        rows = [torch.tensor(rows) for _, rows in pieces]
        self._context = ContextKV([kv[chunk] for chunk, _ in pieces], rows, torch.tensor(ids))

    @property
    def kv_entries(self):
        return self._context.columns

    def key_values(self, room=None):
        return self._context


class ShownByImportance:
    """The same where heads are shown the rows that the serving model finds important."""

    def __init__(self, model, layout, number):
        chunks = [torch.tensor(chunk) for chunk in layout.chunks]
        kv = model.compressor.encode(chunks)
        scores = model.compressor.importance(chunks, kv)
        even, places, coarse, at = [], [], [], 0
        for (chunk, rows), spans in zip(layout.shown[number], layout.coarse[number], strict=True):
            kept = important_rows(scores[chunk].flatten(0, 1).float().numpy(), spans)
            part = kv[chunk].ragged(torch.from_numpy(kept).view_as(scores[chunk]))
            stood = part.tokens.long()
            coarse.append(CoarseKV(part, at + stood - rows[0], stood))
            coarsely = {row for start, end, _ in spans for row in range(start, end)}
            even.append(torch.tensor([row for row in rows if row not in coarsely], dtype=torch.long))
            places.append(at + even[-1] - rows[0])
            at += len(rows)
        shown = zip(layout.shown[number], even, strict=True)
        ids = torch.cat([chunks[chunk][rows] for (chunk, _), rows in shown])
        encodings = [kv[chunk] for chunk, _ in layout.shown[number]]
        self._context = ContextKV(encodings, even, ids, places, even, coarse, at)
        self.kv_entries = at

    def key_values(self, room=None):
        return self._context


@pytest.fixture
def examples():
    draw = torch.Generator().manual_seed(3)

    def ids(count):
        return tuple(torch.randint(3, 40_000, (count,), generator=draw).tolist())

    return [Example(ids(c), ids(p), ids(a)) for c, p, a in [(40, 9, 3), (25, 5, 6), (60, 12, 1)]]


def make(model, **options):
    settings = {"low_rank": (4, 8.0) if model.injection.kind == "prefix" else None, **options}
    return InjectionObjective(model, LayoutMaker(CutConfig(RATIOS), [28]), **settings)


def trained(objective, scale=0.3):
    """As after training: updates that are not zero."""
    torch.manual_seed(5)
    for name, parameter in objective.trained.named_parameters():
        if ".up." in name or "o_proj" in name:
            torch.nn.init.normal_(parameter, std=scale)
    return objective


def served(make_small_model, objective):
    """The model with the objective's weights loaded as an adapter."""
    base = objective.model
    low_rank = base.injection.kind == "prefix" or objective.trained.upper is not None
    fresh = make_small_model(injection=base.injection.kind, injection_layers=base.injection.layers)
    config = AdapterConfig(
        base.name, base.fingerprint, base.injection.kind, base.injection.layers,
        rank=4 if low_rank else None, alpha=8.0 if low_rank else None,
    )  # fmt: skip
    fresh.load_adapter(Adapter(config, {k: v.detach().clone() for k, v in objective.trained.state_dict().items()}))
    return fresh


def served_nll(model, examples):
    """What the objective's ``nll`` at ratio 4 is to be, by a model that serves."""
    layout = LayoutMaker(CutConfig(RATIOS), [28]).fixed(examples, 4)
    found = []
    for number, example in enumerate(examples):
        whole = Prompt(model.prompt_format.prefix, (*example.prompt, *example.answer[:-1]))
        logits = model.logits(whole, Shown(model, layout, number))[-len(example.answer) :]
        found.append(torch.nn.functional.cross_entropy(logits, torch.tensor(example.answer)).item())
    return found


@pytest.mark.parametrize("injection", ["prefix", "cross_attention"])
@pytest.mark.parametrize("layers", [2, 4])
def test_its_nll_is_that_of_the_served_model_with_the_adapter_loaded(make_small_model, examples, injection, layers):
    model = make_small_model(injection=injection, injection_layers=layers)
    objective = make(model)
    untrained = objective.nll(examples, 4)
    trained(objective)
    nll = objective.nll(examples, 4)
    assert max(abs(a - b) for a, b in zip(nll, untrained, strict=True)) > 0.05

    assert served_nll(served(make_small_model, objective), examples) == pytest.approx(nll, abs=1e-4)


@pytest.mark.parametrize("injection", ["prefix", "cross_attention"])
def test_rows_by_importance_are_those_that_the_served_model_keeps(make_small_model, examples, injection):
    maker = LayoutMaker(CutConfig(RATIOS, rows="importance", mixed=1.0, packed=0.0, distractors=1.0), [28])
    objective = trained(make(make_small_model(injection=injection, injection_layers=2)))
    fresh = served(make_small_model, objective)
    for layout in (maker.fixed(examples, 4), maker.draw(examples, Random(4))):
        logits = objective.logits(examples, layout)
        by_stride = objective.logits(examples, LayoutMaker(CutConfig(RATIOS), [28]).fixed(examples, 4))
        assert (logits - by_stride).abs().max() > 0.05
        for number, example in enumerate(examples):
            whole = Prompt(fresh.prompt_format.prefix, (*example.prompt, *example.answer[:-1]))
            expected = fresh.logits(whole, ShownByImportance(fresh, layout, number))[-len(example.answer) :]
            assert (logits[number, -len(example.answer) :] - expected).abs().max() < 1e-3


def test_weights_are_trained_behind_rows_by_importance(make_small_model, examples):
    layouts = LayoutMaker(CutConfig({4: 1}, rows="importance"), [28])
    objective = trained(InjectionObjective(make_small_model(), layouts, low_rank=(4, 8.0), self_distillation=0.5))
    objective(examples)["loss"].backward()
    assert all(weight.grad.abs().sum() > 0 for weight in objective.trained.parameters())


def test_the_attention_of_the_layers_above_is_updated_behind_a_context_only(make_small_model, examples):
    model = make_small_model(injection="cross_attention", injection_layers=2)
    without = trained(make(model))
    alone = without.nll(examples, 4)
    objective = make(model, low_rank=(4, 8.0))
    objective.trained.load_state_dict(without.trained.state_dict(), strict=False)
    assert objective.nll(examples, 4) == alone
    torch.manual_seed(6)
    for up in objective.trained.upper.up.values():
        torch.nn.init.normal_(up, std=0.3)
    nll = objective.nll(examples, 4)
    assert max(abs(a - b) for a, b in zip(nll, alone, strict=True)) > 0.05
    assert {int(key[0]) for key in objective.trained.upper.up} == {2, 3}

    fresh = served(make_small_model, objective)
    assert served_nll(fresh, examples) == pytest.approx(nll, abs=1e-4)
    untrained = make_small_model(injection="cross_attention", injection_layers=2)
    for example in examples:
        plain = Prompt(fresh.prompt_format.prefix, example.prompt)
        assert torch.equal(fresh.logits(plain), untrained.logits(plain))


def test_a_drawn_layout_gives_the_served_models_logits_too(make_small_model, examples):
    objective = trained(make(make_small_model()))
    layout = LayoutMaker(CutConfig(RATIOS, mixed=1.0, packed=1.0, distractors=1.0), [28]).draw(examples, Random(4))
    logits = objective.logits(examples, layout)
    fresh = served(make_small_model, objective)
    for number, example in enumerate(examples):
        whole = Prompt(fresh.prompt_format.prefix, (*example.prompt, *example.answer[:-1]))
        expected = fresh.logits(whole, Shown(fresh, layout, number))[-len(example.answer) :]
        assert (logits[number, -len(example.answer) :] - expected).abs().max() < 1e-4


def test_the_teacher_is_the_untrained_model_reading_every_token(make_small_model, examples):
    model = make_small_model()
    objective = trained(make(model))
    nll = objective.teacher_nll(examples)
    for number, example in enumerate(examples):
        prefix = model.prompt_format.prefix
        text = Prompt((), (*prefix, *example.context, *example.prompt, *example.answer[:-1]))
        logits = model.logits(text)[-len(example.answer) :]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(example.answer)).item()
        assert nll[number] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("injection", ["prefix", "cross_attention"])
def test_its_own_teacher_is_itself_shown_every_row(make_small_model, examples, injection):
    model = make_small_model(injection=injection, injection_layers=2)
    coarse = LayoutMaker(CutConfig({8: 1}, mixed=0.0, packed=0.0, distractors=0.0), [28])
    low_rank = (4, 8.0) if injection == "prefix" else None
    objective = trained(InjectionObjective(model, coarse, low_rank=low_rank, self_distillation=0.5))
    parts = objective(examples)
    student, teacher = (objective.logits(examples, coarse.fixed(examples, ratio)).log_softmax(-1) for ratio in (8, 1))
    expected = torch.stack(
        [
            torch.nn.functional.kl_div(s[-len(e.answer) :], t[-len(e.answer) :], log_target=True, reduction="none")
            .sum(dim=-1)
            .mean()
            for e, s, t in zip(examples, student, teacher, strict=True)
        ]
    ).mean()
    assert expected > 1e-3
    assert parts["self_divergence"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert parts["loss"].item() == pytest.approx((parts["nll"] + 0.5 * parts["self_divergence"]).item())


@pytest.mark.parametrize("injection", ["prefix", "cross_attention"])
def test_every_trained_weight_gets_a_gradient_and_the_base_none(make_small_model, examples, injection):
    objective = trained(make(make_small_model(injection=injection, injection_layers=2), distillation=1.0))
    parts = objective(examples)
    assert parts["loss"].item() == pytest.approx((parts["nll"] + parts["divergence"]).item())
    parts["loss"].backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad is None for p in objective.model.hf_model.parameters())
    assert not any("embed" in name or "mlp" in name for name in objective.state_dict())


def test_without_a_context_of_its_own_layers_above_are_still_trained(make_small_model, examples):
    """The compressor stops at the injection layers, the decoder's updates reach the top."""
    objective = make(make_small_model(injection_layers=2))
    keys = {name.split(".")[2].partition("_")[0] for name, _ in objective.trained.decode.named_parameters(prefix="x")}
    assert keys == {"0", "1", "2", "3"}
    compressed = [name.split(".")[1] for name, _ in objective.trained.compress.named_parameters()]
    assert not {"1_q_proj", "1_o_proj", "2_k_proj"} & set(compressed)
    assert {"0_q_proj", "1_k_proj", "1_v_proj"} <= set(compressed)


def test_prefix_injection_is_not_trained_where_some_layers_see_less(model):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    words = {"vocab_size": len(model.tokenizer), "eos_token_id": 2, "pad_token_id": 2}
    config = Olmo3Config(**words, num_hidden_layers=4, sliding_window=24, **sizes)
    base = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).float().eval()
    with pytest.raises(UnsupportedModelError, match="narrow cannot be trained .*cross_attention"):
        make(SharedLLMModel(base, model.tokenizer, name="narrow"))
    make(SharedLLMModel(base, model.tokenizer, name="narrow", injection="cross_attention"))
    make(SharedLLMModel(base, model.tokenizer, name="narrow", context_window=24))
