"""What an adapter carries, measured with one that carries nothing."""

import json

import pytest

from shared_context import SharedLLMModel
from shared_context.errors import ConfigError
from shared_context.evaluation import compression
from shared_context.model.adapter import Adapter, AdapterConfig
from shared_context.model.low_rank import InjectionLoRA


@pytest.mark.slow
def test_nothing_is_found_in_an_adapter_that_changes_nothing(few_questions, tmp_path):
    untrained, trained = (SharedLLMModel.from_pretrained(adapter=None) for _ in range(2))
    layers = trained.injection.layers
    config = AdapterConfig(trained.name, trained.fingerprint, "prefix", layers, rank=2, alpha=4.0, ratios=(8,))
    trained.load_adapter(Adapter(config, InjectionLoRA(trained.hf_model, layers, 2, 4.0).state_dict()))
    measures = compression.measure_passages, compression.measure_grains
    passages, grains = (measure(trained, few_questions, limit=2) for measure in measures)
    for report, in_common in ((passages, 9), (grains, 3)):
        nll = {row[:2]: row[2] for row in report.tables()[0].rows}
        ways = compression.TRAINED, compression.UNTRAINED
        trained_ways, untrained_ways = ({way for way, weights in nll if weights == which} for which in ways)
        both = trained_ways & untrained_ways
        assert len(both) == in_common
        for way in both:
            assert nll[way, compression.TRAINED] == nll[way, compression.UNTRAINED]
    nll = {row[0]: row[2] for row in passages.tables()[0].rows}
    assert nll[compression.injected(8)] < nll[compression.STRIDE] < nll[compression.WRONG]
    alone = tmp_path / "alone.jsonl"
    row = {"question": "What burns?", "answers": ["colza"], "passage": "The lamp burns colza, a pint a night."}
    alone.write_text(json.dumps(row))
    for measure, missing in zip(measures, ("wrong passage", "one document"), strict=True):
        with pytest.raises(ConfigError, match=missing):
            measure(trained, alone)
    with pytest.raises(ConfigError, match="--adapter"):
        compression.measure_grains(untrained, few_questions, limit=2)
    resumed = compression.measure_passages(untrained, few_questions, limit=2, resume=tmp_path / "state")
    again = compression.measure_passages(untrained, few_questions, limit=2, resume=tmp_path / "state")
    assert {row[1] for row in resumed.tables()[0].rows} == {compression.UNTRAINED}
    assert again.tables() == resumed.tables()
