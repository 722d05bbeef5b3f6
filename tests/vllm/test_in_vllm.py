"""Answers of vLLM behind injected selections are the library's own; `make test-vllm` runs this."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest
import torch
from transformers import DynamicCache

from benchmarks import serving
from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.evaluation.questions import read_questions
from shared_context.integrations.vllm.selections import parameters, remove_selection, write_selection
from shared_context.model.cache import CACHE_ARGUMENT

DATA = Path(__file__).parent.parent.parent / "examples" / "data"
NEW_TOKENS = 24


def case(prompt, folder, **other):
    """A request that names the selection of a prompt."""
    id = write_selection(folder, prompt.token_ids[: prompt.computed], prompt.layers())
    asked = {"token_ids": prompt.token_ids, "max_tokens": NEW_TOKENS, "salt": id}
    return {**asked, "transfer": parameters(id, prompt.computed), **other}


def test_answers_are_those_of_the_library_to_the_word(exact, store, questions, answers, tmp_path):
    asked = questions(40)
    selections = [store.select(question, budget=256) for question in asked]
    prompts = [exact.assemble(q, context=s, max_new_tokens=NEW_TOKENS) for q, s in zip(asked, selections, strict=True)]
    expected = [exact.generate(q, context=s, max_new_tokens=NEW_TOKENS) for q, s in zip(asked, selections, strict=True)]
    said, _ = answers([case(prompt, tmp_path) for prompt in prompts], tmp_path)
    assert [one["text"] for one in said] == expected
    assert [one["cached"] for one in said] == [prompt.computed for prompt in prompts]


def test_in_half_precision_answers_part_where_two_tokens_are_all_but_tied(
    exact, store, handbook, questions, answers, tmp_path
):
    half = SharedLLMModel.from_pretrained(dtype="bfloat16")
    asked = questions(40)
    with SharedLLMContextStore(half, embedder=None) as halves:
        halves.add(handbook, id="handbook")
        shown = [halves.select(question, budget=256) for question in asked]
        prompts = [half.assemble(q, context=s, max_new_tokens=NEW_TOKENS) for q, s in zip(asked, shown, strict=True)]
        own = [half.generate(q, context=s, max_new_tokens=NEW_TOKENS) for q, s in zip(asked, shown, strict=True)]
    said, _ = answers([case(prompt, tmp_path) for prompt in prompts], tmp_path, dtype="bfloat16")
    parted = [n for n, one in enumerate(said) if one["text"] != own[n]]
    assert len(parted) <= 0.15 * len(asked)
    for n in parted:
        there, here = said[n]["token_ids"], half.tokenize(own[n]).ids.tolist()
        at = next(i for i, (a, b) in enumerate(zip(there, here, strict=False)) if a != b)
        logits = logits_behind(exact, exact.assemble(asked[n], context=store.select(asked[n], budget=256)), there[:at])
        assert abs(logits[there[at]] - logits[here[at]]) < 0.125  # the step of bfloat16 between 16 and 32


@torch.inference_mode()
def logits_behind(model, prompt, answer):
    """Logits of the token that comes next, behind a prompt and the beginning of an answer."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(prompt.key_values.transpose(0, 1)):
        cache.update(keys.transpose(0, 1)[None], values.transpose(0, 1)[None], layer)
    rest = torch.tensor([[*prompt.token_ids[prompt.computed :], *answer]])
    positions = prompt.computed + torch.arange(rest.shape[1])[None]
    return model.hf_model(rest, **{CACHE_ARGUMENT: cache}, position_ids=positions, logits_to_keep=1).logits[0, -1]


def test_what_is_wrong_with_a_request_fails_it_alone(exact, store, questions, answers, tmp_path):
    (question,) = questions(1)
    selection = store.select(question, budget=256)
    prompt = exact.assemble(question, context=selection, max_new_tokens=NEW_TOKENS)
    expected = exact.generate(question, context=selection, max_new_tokens=NEW_TOKENS)
    plain = exact.assemble(question, max_new_tokens=NEW_TOKENS)
    good, gone, damaged = (case(prompt, tmp_path) for _ in range(3))
    remove_selection(tmp_path, gone["salt"])
    file = tmp_path / f"{damaged['salt']}.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 0xFF
    file.write_bytes(content)
    unsalted = case(prompt, tmp_path, salt=None)
    other = case(prompt, tmp_path)
    other["token_ids"] = [*prompt.token_ids[:20], prompt.token_ids[20] + 1, *prompt.token_ids[21:]]
    malformed = case(prompt, tmp_path, transfer={"shared_context": {"id": "../../etc/passwd", "tokens": 3}})
    ordinary = {"token_ids": plain.token_ids, "max_tokens": NEW_TOKENS, "salt": None, "transfer": None}
    cases = [good, gone, damaged, unsalted, other, malformed, ordinary, good]
    said, log = answers(cases, tmp_path)
    assert [one["finish_reason"] == "error" for one in said] == [False, True, True, True, True, True, False, False]
    assert said[0]["text"] == said[-1]["text"] == expected
    assert said[6]["text"] == exact.generate(question, max_new_tokens=NEW_TOKENS)
    for words in ("There is no selection", "is damaged", "no cache_salt", "of other tokens", "32 hex digits"):
        assert words in log


@pytest.mark.parametrize(
    ("adapter", "name", "compresses"),
    [(None, "python", False), ("factoid", "vllm", False), (None, "python", True), ("factoid", "python", True)],
)
def test_the_command_starts_vllm_and_answers_through_it(
    adapter, name, compresses, tmp_path, handbook, questions, python
):
    exact = SharedLLMModel.from_pretrained(dtype="float32", adapter=adapter)
    path = tmp_path / "handbook.ctx"
    with SharedLLMContextStore(exact, path, embedder=None) as store:
        store.add(handbook, id="handbook")
        asked = questions(8)
        expected = [exact.generate(q, context=store.select(q, budget=256), max_new_tokens=NEW_TOKENS) for q in asked]
        own = chunks(path)
    command = [sys.executable, "-m", "shared_context", "serve", str(path), "--port", "0", "--dtype", "float32"]
    command += [] if adapter is None else ["--adapter", adapter]
    command += ["--engine-compresses", "--engine-timeout", "600"] if compresses else []
    engine = f"{python.parent / name} --enforce-eager"
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1"}
    with subprocess.Popen(
        [*command, "--engine", engine], stderr=subprocess.PIPE, text=True, env={**os.environ, **settings}
    ) as server:
        log: list[str] = []
        try:
            for line in server.stderr:
                log.append(line)
                if "running on" in line:
                    break
            url = log[-1].split("running on ")[1].split(" ")[0]
            reading = threading.Thread(target=log.extend, args=(server.stderr,))
            reading.start()
            down = httpx.post(f"{url}/v1/chat/completions", json=chat("handbook", asked[0]), timeout=60)
            assert (down.status_code, down.json()["error"]["code"]) == (503, "engine_down")
            until = time.monotonic() + 900
            while (ready := httpx.get(f"{url}/ready", timeout=120)).status_code != 200:
                assert server.poll() is None and time.monotonic() < until, (ready.text, "".join(log[-50:]))
                time.sleep(2)
            with ThreadPoolExecutor(8) as pool:
                answers = pool.map(partial(answer, url), asked)
                plain = pool.map(partial(answer, url, context=False), asked)  # meanwhile, and without any adapter
            assert list(answers) == expected
            assert list(plain) == [exact.generate(question, max_new_tokens=NEW_TOKENS) for question in asked]
            assert chunks(path) == (2 * own if compresses else own) > 0  # one's own and the engine's are kept apart
            streamed = chat("handbook", asked[0]) | {"stream": True}
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=streamed, timeout=600) as stream:
                events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
            assert "".join(e["choices"][0]["delta"].get("content") or "" for e in events) == expected[0]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(120)
        reading.join()  # and so vLLM has ended, which has the same stderr
    assert server.returncode == 0


def test_both_ways_of_serving_and_pasted_text_are_measured_side_by_side(python, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    asked = read_questions(DATA / "handbook-questions.json")
    report = serving.measure(
        SharedLLMModel.from_pretrained(),
        asked,
        vllm=f"{python} --enforce-eager",
        entries=(256,),
        clients=(1, 4),
        limit=4,
    )
    (table,) = report.parts
    ways = [serving.IN_PROCESS, serving.INJECTED, serving.PASTED]
    assert [row[:3] for row in table.rows] == [(256, at_once, way) for at_once in (1, 4) for way in ways]
    for row in table.rows:
        failed, tokens = row[-2:]
        assert failed == 0 and 0 < tokens <= 24
    assert len(report.targets) == 3 and not report.not_run


def chunks(path):
    """Chunks whose keys and values a store has on disk."""
    return len(list((path / "kv").rglob("*.safetensors")))


def chat(model, question):
    messages = [{"role": "user", "content": question}]
    return {"model": model, "messages": messages, "max_tokens": NEW_TOKENS, "budget": 256}


def answer(url, question, **further):
    done = httpx.post(f"{url}/v1/chat/completions", json=chat("handbook", question) | further, timeout=600)
    assert done.status_code == 200, done.text
    return done.json()["choices"][0]["message"]["content"]
