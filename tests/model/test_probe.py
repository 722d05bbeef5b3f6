"""The probe guesses importance from keys and values; what is linear in them it finds exactly."""

from dataclasses import replace

import pytest
import torch

from shared_context import SharedLLMContextStore, StoreConfig, TreeConfig
from shared_context.errors import ConfigError, ModelNotFoundError
from shared_context.kernels import ChunkKV
from shared_context.model.probe import ImportanceProbe, features, fitted
from shared_context.training.probing import fit_probe

SINK = 7


@pytest.fixture(scope="module")
def scored():
    """Encodings whose importance is a function of their keys and values, and how keys are turned."""
    draw = torch.Generator().manual_seed(0)
    rotary = 1.0 / 100 ** (torch.arange(3) / 3)
    weights = 0.3 * torch.randn((4, 2 * 2 * 6 + 1, 2), generator=draw)
    weights[:, -1] -= 4
    chunks = []
    for tokens in (40, 25, 60):
        kv = ChunkKV(torch.randn((2, 4, 2, tokens, 6), generator=draw))
        logarithm = (features(kv, rotary, SINK) @ weights).transpose(1, 2)
        chunks.append(replace(kv, importance=logarithm.clamp(max=0).exp().half()))
    return chunks, rotary


def test_what_is_linear_in_keys_and_values_is_found(scored, tmp_path):
    chunks, rotary = scored
    probe = fitted(chunks[:2], rotary, SINK, "some", ridge=1e-9)
    probe.save(tmp_path / "probe.safetensors")
    for one in probe, ImportanceProbe.load(tmp_path / "probe.safetensors"):
        guessed, expected = one.importance(chunks[2], rotary, SINK).float(), chunks[2].importance.float()
        ranks = [scores.flatten().argsort().argsort().float() for scores in (guessed, expected)]
        assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.98
        assert one.fingerprint == "some"


def test_the_position_of_a_chunk_makes_no_difference(scored):
    """Keys are read as if they stood first."""
    chunks, rotary = scored
    assert not torch.allclose(features(chunks[0], rotary, SINK), features(chunks[0], rotary, SINK + 9))
    model_like = fitted(chunks, rotary, SINK, "some")
    assert model_like.importance(chunks[0], rotary, SINK).max() <= 1


def test_a_store_uses_the_probe_it_is_asked_for(make_small_model, tmp_path):
    model, text = make_small_model(), "the harbour master keeps the lamp and the log of the harbour " * 12
    config = StoreConfig(tree=TreeConfig(chunk_size=64, height=2), importance="probe")
    with pytest.raises(ConfigError, match="shared-context probe"):
        SharedLLMContextStore(model, embedder=None, config=config)
    model.probe = fit_probe(model, [text], chunks=6, chunk_size=48)
    scores = []
    for importance in ("probe", "repetition"):
        store = SharedLLMContextStore(model, embedder=None, config=replace(config, importance=importance))
        store.add(text, id="log")
        selection = store.select(None, ratio=4)
        context = selection.key_values()
        assert all(part.kv.entries == -(-chunk.tree.length // 4)
                   for part, chunk in zip(context.coarse, selection.chunks, strict=True))  # fmt: skip
        scores.append(model.nll("the lamp", "harbour", context=selection))
    assert scores[0] != scores[1]


def test_what_is_no_probe_is_named(tmp_path):
    file = tmp_path / "probe.safetensors"
    for content in (None, b"", b"{}" * 40):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ModelNotFoundError, match="is no probe"):
            ImportanceProbe.load(file)
