"""What tells models apart: the checkpoint's weights, in whatever dtype they are loaded."""

import copy

import pytest
import torch

from shared_context import SharedLLMContextStore, SharedLLMModel

TEXT = "the harbour master keeps the lamp and the log of the harbour. " * 8


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, make_model, tokenizer):
    """Folders of one model whose small weights no float16 holds, saved in three dtypes."""
    # Its configuration is shared with other tests, and saving writes the dtype into it.
    model = copy.deepcopy(make_model("llama").hf_model)
    with torch.no_grad():
        model.base_model.layers[0].self_attn.o_proj.weight.mul_(1e-5)
    folders = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        folders[dtype] = tmp_path_factory.mktemp("checkpoint")
        model.to(dtype).save_pretrained(folders[dtype])
        tokenizer.save_pretrained(folders[dtype])
        model.to(torch.float32)
    return folders


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float16])
def test_a_checkpoint_has_one_fingerprint_in_every_dtype(checkpoints, saved):
    loaded = [SharedLLMModel.from_pretrained(checkpoints[saved], dtype=d) for d in ("float32", "bfloat16", "float16")]
    assert len({model.fingerprint for model in loaded}) == 1
    assert len({model.identity for model in loaded}) == 3
    assert loaded[2].dtype == torch.float16


def test_a_store_opens_in_every_dtype_and_kv_stay_apart(checkpoints, tmp_path):
    folder, path = checkpoints[torch.bfloat16], tmp_path / "store"
    with SharedLLMContextStore(SharedLLMModel.from_pretrained(folder, dtype="bfloat16"), path=path) as store:
        store.add(TEXT, id="log")
    for dtype in ("float16", "float32"):
        model = SharedLLMModel.from_pretrained(folder, dtype=dtype)
        fresh = SharedLLMContextStore(model)
        fresh.add(TEXT, id="log")
        with SharedLLMContextStore(model, path=path) as store:
            (injected,), (expected,) = (
                of.select("who keeps the log?", budget=64).key_values().chunks for of in (store, fresh)
            )
        assert injected.data.dtype == model.dtype
        torch.testing.assert_close(injected.data, expected.data)


def test_the_default_model_is_the_one_that_stores_were_made_with(model):
    assert model.fingerprint == "cc7480d533c6bed7"
    assert SharedLLMModel.from_pretrained(dtype="float16").fingerprint == model.fingerprint
