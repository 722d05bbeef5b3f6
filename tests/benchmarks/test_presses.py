"""Presses at equal KV entries: what is compared is read alike, and what does not run is named."""

import sys

import pytest
import torch
from transformers import DynamicCache

from benchmarks import presses, pressing
from benchmarks.readers import reading
from shared_context import SharedLLMModel
from shared_context.model.adapter import Adapter, AdapterConfig
from shared_context.model.cache import CACHE_ARGUMENT
from shared_context.model.low_rank import InjectionLoRA

QUESTION, ANSWER = "When is the gate opened?", "At six in the morning."
CONTEXT = "The gate is opened by the warden at six in the morning. The lamp is lit at dusk. " * 4


class Last:
    """A press that keeps the last entries."""

    def __init__(self, kept):
        self.kept = kept

    def post_init_from_model(self, model):
        pass

    def forward_hook(self, module, args, kwargs, output):
        assert kwargs["cache_position"][-1] + 1 == kwargs["hidden_states"].shape[1]
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        layer.keys, layer.values = layer.keys[:, :, -self.kept :], layer.values[:, :, -self.kept :]
        return output


class Broken(Last):
    def forward_hook(self, module, args, kwargs, output):
        raise RuntimeError("no such layer\nand more")


@pytest.fixture(scope="module")
def of(small):
    return pressing.prompted(small, QUESTION, CONTEXT, ANSWER)


def test_a_press_that_keeps_everything_gives_what_pasted_text_gives(small, of):
    ids = [*of.prefix, *of.context]
    with reading(small, pressing.PLAIN_ATTENTION):
        caches, failed = pressing.prefilled(small.hf_model, ids, {"all": Last(len(ids))})
        found = pressing.score_behind(small.hf_model, caches["all"], len(ids), of)
    assert failed == {}
    assert found == pytest.approx(small.nll(QUESTION, ANSWER, context=CONTEXT), abs=1e-4)


@torch.inference_mode()
def test_what_a_press_drops_is_not_seen_and_what_it_keeps_stands_where_it_stood(small, of):
    ids, kept = [*of.prefix, *of.context], 30
    with reading(small, pressing.PLAIN_ATTENTION):
        caches, _ = pressing.prefilled(small.hf_model, ids, {"last": Last(kept), "fewer": Last(10)})
        assert [cache.get_seq_length() for cache in caches.values()] == [kept, 10]
        found = pressing.score_behind(small.hf_model, caches["last"], len(ids), of)
        # the same in one pass over everything, with a mask that hides the dropped entries from what stands behind
        behind = [*of.suffix, *of.answer[:-1]]
        whole = torch.tensor([[*ids, *behind]])
        seen = torch.ones(whole.shape[1], whole.shape[1], dtype=torch.bool).tril()
        seen[len(ids) :, : len(ids) - kept] = False
        logits = small.hf_model(input_ids=whole, attention_mask=seen[None, None]).logits[0, -len(of.answer) :]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(of.answer)).item()
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_press_that_fails_is_named_with_its_reason_and_stops_no_other(small, of):
    with reading(small, pressing.PLAIN_ATTENTION):
        caches, failed = pressing.prefilled(small.hf_model, of.context, {"last": Last(5), "broken": Broken(5)})
    assert list(caches) == ["last"]
    assert failed == {"broken": "RuntimeError: no such layer"}


def test_a_press_is_asked_to_keep_exactly_the_budget():
    for count in range(20, 1200, 7):
        for kept in range(1, count + 1, 11):
            assert int(count * (1 - pressing._share(count, kept))) == kept  # as kvpress counts


def test_presses_of_kvpress_do_the_same_for_one_prefill_as_for_one_each(small, of):
    kvpress = pytest.importorskip("kvpress")
    ids = [*of.prefix, *of.context]
    made = {press: press.make(kvpress, 0.5) for press in pressing.AT_ONCE}
    with reading(small, pressing.PLAIN_ATTENTION), torch.inference_mode():
        together, failed = pressing.prefilled(small.hf_model, ids, made)
        assert failed == {}
        for press, at_work in made.items():
            alone = DynamicCache()
            with at_work(small.hf_model):
                small.hf_model.model(
                    input_ids=torch.tensor([ids]), cache_position=torch.arange(len(ids)), **{CACHE_ARGUMENT: alone}
                )
            for one, other in zip(alone.layers, together[press].layers, strict=True):
                assert one.keys.shape == other.keys.shape
                if press.name not in ("CompactorPress", "LeverageScorePress"):  # which draw projections at random
                    torch.testing.assert_close(one.keys, other.keys)
                    torch.testing.assert_close(one.values, other.values)


@pytest.mark.slow
def test_without_kvpress_selections_are_measured_and_the_presses_named(few_questions, monkeypatch):
    monkeypatch.setitem(sys.modules, "kvpress", None)
    trained = SharedLLMModel.from_pretrained(adapter=None)
    layers = trained.injection.layers
    config = AdapterConfig(trained.name, trained.fingerprint, "prefix", layers, rank=2, alpha=4.0, ratios=(8,))
    trained.load_adapter(Adapter(config, InjectionLoRA(trained.hf_model, layers, 2, 4.0).state_dict()))
    report = presses.measure(trained, few_questions, limit=2)
    assert any(
        "ExpectedAttentionPress" in what and "pip install kvpress" in why for what, why in report.not_run.items()
    )
    assert report.targets == []
    for kind in presses.PASSAGES:
        (table,) = [t for t in report.tables() if t.title.startswith(f"Over the {kind}: negative")]
        rows = {row[:2]: row[2:] for row in table.rows}
        for way in presses.SELECTED, presses.STRIDED:
            # an adapter that changes nothing
            assert rows[way, presses.TRAINED] == rows[way, presses.UNTRAINED]
        assert (presses.TEXT, presses.UNTRAINED) in rows
