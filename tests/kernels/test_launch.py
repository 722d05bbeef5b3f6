"""Where Triton cannot run, every kernel's work is PyTorch's, and one warning says so."""

import sys
import warnings

import pytest
import torch

from shared_context.kernels import (
    ChunkKV,
    assemble,
    assemble_reference,
    attention_with_lse,
    late_interaction_scores,
    node_scores,
    preserved_cuts,
    quantize_codes,
    ragged_attention,
)
from shared_context.kernels import launch as where
from shared_context.kernels.late_interaction import late_interaction_scores_naive, node_scores_naive
from shared_context.kernels.preserved_cuts.naive import preserved_cuts_naive
from shared_context.kernels.ragged_attention.naive import ragged_attention_naive

KERNELS = ("late_interaction", "ragged_attention", "kv_assembly", "preserved_cuts")


@pytest.fixture
def on_a_gpu(monkeypatch, device):
    """The tests' device counts as a GPU, on which nothing has failed yet."""
    monkeypatch.setattr(where, "GPUS", (device.type,))
    monkeypatch.setattr(where, "_failed", [])


@pytest.fixture
def no_import(on_a_gpu, monkeypatch):
    """A machine without a Triton that can be imported, such as Windows."""
    monkeypatch.setitem(sys.modules, "triton", None)
    for kernel in KERNELS:
        monkeypatch.delitem(sys.modules, f"shared_context.kernels.{kernel}.triton_kernel", raising=False)


@pytest.fixture
def no_compiler(on_a_gpu, monkeypatch):
    """A Triton that can be imported and not launched."""

    class Broken:
        def __getitem__(self, grid):
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    for kernel in KERNELS:
        module = pytest.importorskip(f"shared_context.kernels.{kernel}.triton_kernel")
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Broken())


def all_kernels(device):
    """What every kernel gives, and what its formula does."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=random).to(device)

    codes, scales = quantize_codes(normal(5, 8, 16))
    asked = normal(3, 16), torch.rand(3, generator=random).to(device), codes, scales
    yield late_interaction_scores(*asked), late_interaction_scores_naive(*asked)
    leaves = normal(3, 4)
    yield node_scores(leaves), node_scores_naive(leaves)
    trees = normal(16), normal(7, 16), torch.tensor([0, 4], device=device), torch.tensor([4, 3], device=device), 2
    yield preserved_cuts(*trees), preserved_cuts_naive(*trees)
    starts, counts = torch.tensor([[0, 4]]), torch.tensor([[4, 6]])
    ragged = normal(1, 2, 3, 16), normal(10, 16), normal(10, 16), starts, counts
    yield (
        torch.cat([part.flatten() for part in ragged_attention(*ragged)]),
        torch.cat([part.flatten() for part in ragged_attention_naive(*ragged)]),
    )
    query, key, value = normal(1, 2, 3, 16), normal(1, 2, 6, 16), normal(1, 2, 6, 16)
    formula = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    yield attention_with_lse(query, key, value)[0], formula
    chunk = ChunkKV(normal(2, 2, 2, 6, 16))
    given = [chunk], [torch.tensor([0, 2, 5])], [torch.tensor([3, 4, 5])], torch.rand(8, generator=random)
    out, expected = (torch.zeros(2, 2, 2, 3, 16, device=device) for _ in range(2))
    assemble(*given, out)
    assemble_reference(*given, expected)
    yield out, expected


@pytest.mark.parametrize("broken", ["no_import", "no_compiler"])
def test_pytorch_does_the_work_of_a_triton_that_cannot_run_and_one_warning_says_so(broken, device, request):
    request.getfixturevalue(broken)
    with pytest.warns(RuntimeWarning, match="Triton cannot run here") as warned:
        for fast, formula in all_kernels(device):
            torch.testing.assert_close(fast, formula, atol=1e-4, rtol=1e-4)
    assert len(warned) == 1


@pytest.mark.parametrize("first", range(6))
def test_every_kernel_falls_back_by_itself(no_import, device, monkeypatch, first):
    """Whichever is launched first meets the fault."""
    results = all_kernels(device)
    for _ in range(first):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            next(results)
    where._failed.clear()
    with pytest.warns(RuntimeWarning, match="triton"):
        fast, formula = next(results)
    torch.testing.assert_close(fast, formula, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning:triton")
def test_a_triton_that_runs_does_the_work_without_a_warning(on_a_gpu, device):
    pytest.importorskip("triton")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Triton cannot run here")
        for fast, formula in all_kernels(device):
            torch.testing.assert_close(fast, formula, atol=1e-2, rtol=1e-2)
    assert not where._failed


def test_memory_that_runs_out_is_no_fault_of_triton(on_a_gpu):
    with pytest.raises(torch.OutOfMemoryError), where.or_pytorch():
        raise torch.OutOfMemoryError("no room")
    assert not where._failed


@pytest.mark.parametrize(
    ("capability", "hip", "serves"), [((7, 5), None, False), ((8, 0), None, True), ((7, 5), "6.4", True)]
)
def test_an_old_card_is_served_by_pytorch(monkeypatch, capability, hip, serves):
    where._new_enough.cache_clear()
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old card")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert [where._new_enough(torch.device("cuda", 0)) for _ in range(2)] == [serves] * 2
    assert [str(each.message).count("7.5") for each in warned] == [1] * (not serves)
    where._new_enough.cache_clear()
