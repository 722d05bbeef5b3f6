"""Chunks that vLLM computes are the compressor's own but for rounding; `make test-vllm` runs this."""

import pytest
import torch

from shared_context import SharedLLMModel
from shared_context.errors import SelectionError
from shared_context.integrations.vllm.encodings import make_room, parameters, read_encoding, remove_room

SPANS = [(0, 512), (512, 512), (300, 700), (40, 1), (50, 129)]
"""Chunks of the handbook, where they begin and how many tokens they have; a block of vLLM's cache has 128."""


def case(prompt, folder, prefix):
    """A request that has the keys and values of a prompt saved."""
    id = make_room(folder)
    return {"token_ids": prompt, "max_tokens": 1, "salt": id, "transfer": parameters(id, prefix)}


@pytest.fixture
def chunk(exact, handbook):
    """``chunk(begin, tokens)`` of the handbook: a prompt, its prefix with it."""
    ids = exact.tokenize(handbook).ids.tolist()
    return lambda begin, tokens: [*exact.prompt_format.prefix, *ids[begin : begin + tokens]]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", None)])
def test_chunks_are_the_compressors_own_but_for_rounding(exact, chunk, answers, tmp_path, dtype, tolerance):
    model = exact if dtype == "float32" else SharedLLMModel.from_pretrained(dtype=dtype)
    prefix, config = len(model.prompt_format.prefix), model.hf_model.config
    cases = [case(chunk(*span), tmp_path, prefix) for span in (*SPANS, SPANS[0])]
    answers(cases, tmp_path, dtype)
    for asked in cases:
        ids = asked["token_ids"]
        shape = config.num_hidden_layers, len(ids) - prefix, config.num_key_value_heads, config.head_dim
        found = read_encoding(tmp_path, asked["salt"], ids, shape, model.dtype)
        (own,) = model.compressor.encode([torch.tensor(ids[prefix:])])
        if tolerance is not None:
            torch.testing.assert_close(found, own.data.permute(1, 0, 3, 2, 4), atol=tolerance, rtol=0)
        else:  # no further from what they are exactly than one's own are
            (true,) = exact.compressor.encode([torch.tensor(ids[prefix:])])
            off = [
                (rows.float() - true.data.permute(1, 0, 3, 2, 4)).abs().mean()
                for rows in (found, own.data.permute(1, 0, 3, 2, 4))
            ]
            assert off[0] < 1.2 * off[1]


def test_what_is_wrong_with_a_request_leaves_the_others_alone(exact, chunk, answers, tmp_path):
    prefix, config = len(exact.prompt_format.prefix), exact.hf_model.config
    prompt = chunk(0, 300)
    good, gone, malformed, elsewhere = (case(prompt, tmp_path, prefix) for _ in range(4))
    remove_room(tmp_path, gone["salt"])
    malformed["transfer"] = parameters("../../etc", prefix)
    elsewhere["transfer"] = parameters(elsewhere["salt"], len(prompt))
    plain = {"token_ids": prompt, "max_tokens": 1, "salt": None, "transfer": None}
    said, log = answers([good, gone, malformed, elsewhere, plain, good], tmp_path)
    assert [one["finish_reason"] == "error" for one in said] == [False, False, True, True, False, False]
    assert said[0]["token_ids"] == said[1]["token_ids"] == said[4]["token_ids"] == said[5]["token_ids"]
    shape = config.num_hidden_layers, len(prompt) - prefix, config.num_key_value_heads, config.head_dim
    assert read_encoding(tmp_path, good["salt"], prompt, shape, torch.float32).isfinite().all()
    for asked in (gone, malformed, elsewhere):
        with pytest.raises(SelectionError, match="saved no keys and values"):
            read_encoding(tmp_path, asked["salt"], prompt, shape, torch.float32)
    assert "Make room" in log and "32 hex digits" in log
