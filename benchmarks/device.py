"""What a device does: ``python -m benchmarks.device``, or ``make gpu`` with the tests in front of it.

Kernels beside their references, exactness in half precision, then a model of Llama-3-8B's shape with random weights:
ingest, search, the first token over injected and over pasted text, decoding, memory. Nothing is fetched. On a
processor all of it runs in miniature, which says that it works and nothing else.
"""

from __future__ import annotations

import argparse
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from benchmarks.kernels import copy_bandwidth, kv_assembly, leaf_scores
from shared_context import CacheConfig, Selection, SharedLLMContextStore, SharedLLMModel, StoreConfig
from shared_context.config import GIB
from shared_context.evaluation.report import Cell, Report, Table, model_setting, write_reports
from shared_context.kernels.launch import wait_for
from shared_context.model.attention import ATTENTION
from shared_context.model.prompt import Prompt

MINUTES = 8.0
"""After so long no further part is begun."""

RUNS = 3
WORDS = 4096


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        shape: of the model, as LlamaConfig takes it.
        kernels: whose KV are assembled, a name of the kernels' benchmark.
        contexts: tokens that the first token comes behind.
        decoded: those of them over which answers go on.
        stored: tokens of the store that is searched.
        cache_bytes: of KV in memory.
    """

    shape: dict[str, int]
    kernels: str
    contexts: Sequence[int]
    decoded: Sequence[int]
    stored: int
    cache_bytes: int


WHOLE = Size(
    dict(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=196_608,
    ),
    "Llama-3-8B",
    (4096, 32_768, 131_072),
    (4096, 32_768),
    1_048_576,
    24 * GIB,
)
MINIATURE = Size(
    dict(
        vocab_size=WORDS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    ),
    "SmolLM2-135M",
    (256, 1024, 2048),
    (256, 1024),
    16_384,
    GIB,
)


def random_model(shape: dict[str, int], device: torch.device, dtype: torch.dtype) -> SharedLLMModel:
    """A model of random weights whose tokens are the words w0, w1 and so on."""
    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", *(f"w{n}" for n in range(WORDS - 2))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    config = LlamaConfig(**shape, bos_token_id=0, eos_token_id=1, pad_token_id=1, rope_theta=500_000.0)
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, dtype=dtype)
    return SharedLLMModel(model, tokenizer, name="random weights")


def random_text(tokens: int, seed: int) -> str:
    """So many words of the vocabulary."""
    return " ".join(f"w{n}" for n in random.Random(seed).choices(range(WORDS - 2), k=tokens))


def kernels(size: Size, device: torch.device) -> Report:
    """Every kernel beside its reference."""
    tokens = 131_072 if device.type == "cuda" else 8192
    bandwidth = copy_bandwidth(device)
    rows = [*leaf_scores(tokens, device), *(kv_assembly(size.kernels, 1024, int8, device) for int8 in (False, True))]
    cells = [(r.name, r.kernel, r.eager, r.compiled, r.nbytes / r.kernel / bandwidth) for r in rows]
    columns = ("kernel", "ms", "reference, ms", "torch.compile, ms", "share of copy bandwidth")
    return Report("kernels", {"copy, GB/s": bandwidth / 1e6}, [Table("Milliseconds", columns, cells)])


def exactness(size: Size, device: torch.device) -> Report:
    """Logits behind an injected chunk beside those of the plain model, and both beside float32's own."""
    shape = {**size.shape, "num_hidden_layers": 2}
    rows: list[Sequence[Cell]] = []
    precise: torch.Tensor | None = None
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = random_model(shape, device, torch.float32)
        model.hf_model.to(dtype)
        found, plain = _both_logits(model)
        precise = plain if precise is None else precise
        away = ((a - b).abs().max().item() / precise.std().item() for a, b in ((found, plain), (plain, precise)))
        rows.append((str(dtype).removeprefix("torch."), *away))
    title = "Largest difference of a logit, in standard deviations of all logits"
    columns = ("dtype", "injected from plain", "plain from float32's plain")
    return Report("exactness", {"layers": 2}, [Table(title, columns, rows)])


def _both_logits(model: SharedLLMModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits over a question behind a chunk that is injected, and behind the same chunk in one plain pass."""
    with SharedLLMContextStore(model, embedder=None) as store:
        text = random_text(900, seed=1)
        store.add(text, id="chunk")
        prefix, suffix = model.prompt_format.prefix, tuple(model.tokenize(random_text(16, seed=2)).ids.tolist())
        found = model.logits(Prompt(prefix, suffix), store.select(None, ratio=1)).float()
    whole = [*prefix, *model.tokenize(text).ids.tolist(), *suffix]
    with torch.inference_mode():
        ids = torch.tensor([whole], device=model.device)
        return found, model.hf_model(ids, logits_to_keep=len(suffix)).logits[0].float()


def speed(size: Size, device: torch.device, until: float) -> Iterator[Report]:
    """Ingest, search, first token, decoding and memory of one model over one store, each reported as it is done."""
    dtype = torch.bfloat16 if device.type != "cpu" else torch.float32
    model = random_model(size.shape, device, dtype)
    setting = model_setting(model) | {"parameters": sum(p.numel() for p in model.hf_model.parameters())}
    config = StoreConfig(cache=CacheConfig(memory_bytes=size.cache_bytes))
    memory: list[Sequence[Cell]] = [("weights", *_gigabytes(device))]
    with SharedLLMContextStore(model, embedder=None, config=config) as store:
        texts = [random_text(max(size.contexts), seed) for seed in range(size.stored // max(size.contexts))]
        store.add(texts[0], id="warm-up")
        store.delete("warm-up")
        taken = _seconds(device, lambda: [store.add(text, id=str(n)) for n, text in enumerate(texts)])
        memory.append(("ingest", *_gigabytes(device)))
        questions = [random_text(12, seed=-n) for n in range(1, 11)]
        searches = [_seconds(device, partial(store.select, question)) for question in questions][1:]
        rows = [
            (f"ingest {size.stored:,} tokens", taken, size.stored / taken),
            (f"select among {size.stored:,} tokens, median", median(searches), None),
        ]
        yield Report("store", setting, [Table("Seconds", ("what", "seconds", "tokens per second"), rows)])

        answered: list[Sequence[Cell]] = []
        speeds: list[Sequence[Cell]] = []
        not_run: dict[str, str] = {}
        for tokens in size.contexts:
            if time.monotonic() > until:
                not_run[f"{tokens:,} tokens"] = "the time was up"
                continue
            try:
                selection = store.select(questions[0], budget=tokens, floor=0.0)
                encoding = _seconds(device, partial(store.warm, selection))
                first_tokens = _first_tokens(model, questions[0], selection)
                answered.append((tokens, selection.kv_entries, encoding, *first_tokens))
                if tokens in size.decoded:
                    speeds.append((tokens, *(_decoded(model, questions[0], of) for of in (selection, selection.text))))
            except torch.OutOfMemoryError as error:
                not_run[f"{tokens:,} tokens"] = str(error).split(". ")[0]
            memory.append((f"answering over {tokens:,} tokens", *_gigabytes(device)))
        first = ("tokens", "injected entries", "encoded once", "injected", "pasted", "times faster")
        yield Report(
            "answers",
            setting,
            [
                Table("Seconds to the first token", first, answered),
                Table("Tokens per second after the first", ("tokens", "injected", "pasted"), speeds),
                Table("Memory of the device, GB", ("after", "in use", "at its peak until then"), memory),
            ],
            not_run=not_run,
        )


def _first_tokens(model: SharedLLMModel, question: str, selection: Selection) -> tuple[float, float, float]:
    """Seconds to the first token, injected and pasted, and their ratio; each once without being counted."""
    text = selection.text

    def first(context: Selection | str) -> float:
        return model.complete(question, context=context, max_new_tokens=1).time_to_first_token

    # The largest text takes tens of seconds: it is read once, and what came before has warmed the device up.
    runs = 1 if selection.kv_entries > 100_000 else RUNS
    first(selection)
    injected = median(first(selection) for _ in range(RUNS))
    if runs > 1:
        first(text)
    pasted = median(first(text) for _ in range(runs))
    return injected, pasted, pasted / injected


def _decoded(model: SharedLLMModel, question: str, context: Selection | str, tokens: int = 32) -> float:
    """Tokens per second after the first."""
    done = model.complete(question, context=context, max_new_tokens=tokens, min_new_tokens=tokens)
    return (tokens - 1) / (done.seconds - done.time_to_first_token)


def _seconds(device: torch.device, call: Callable[[], object]) -> float:
    wait_for(device)
    start = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - start


def _gigabytes(device: torch.device) -> tuple[float | None, float | None]:
    if device.type != "cuda":
        return None, None
    return torch.cuda.memory_allocated(device) / 1e9, torch.cuda.max_memory_allocated(device) / 1e9


def measured(size: Size, device: torch.device, minutes: float = MINUTES) -> Iterator[Report]:
    """All reports, one after the other; a part that fails says why and leaves the others alone."""
    until = time.monotonic() + 60 * minutes
    parts: dict[str, Callable[[], Iterator[Report]]] = {
        "kernels": lambda: iter([kernels(size, device)]),
        "exactness": lambda: iter([exactness(size, device)]),
        "speed": lambda: speed(size, device, until),
    }
    for name, part in parts.items():
        if time.monotonic() > until:
            yield Report(name, {}, [], not_run={name: "the time was up"})
            continue
        try:
            yield from part()
        except Exception as error:  # a driver or compiler of a device that no one has tried may raise anything
            yield Report(name, {}, [], not_run={name: f"{type(error).__name__}: {error}"})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, mps or cpu")
    parser.add_argument("--json", type=Path, help="file that all figures are written to")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after so long no further part is begun")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    size = MINIATURE if device.type == "cpu" else WHOLE
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"# {name}, PyTorch {torch.__version__}{', in miniature' if size is MINIATURE else ''}\n")
    done: list[Report] = []
    failed = False
    for report in measured(size, device, given.minutes):
        print(report.markdown(), flush=True)
        done.append(report)
        failed |= bool(report.not_run)
        if given.json is not None:
            write_reports(given.json, done)
    if failed:
        parser.exit(1, "Not all of it ran; see above.\n")


if __name__ == "__main__":
    main()
