"""An engine beside that is down, slow, of another model or without the connector: each has its own status.

The engine of these tests speaks just so much of vLLM's protocol as it takes to go wrong; answers by vLLM itself are
tested in tests/vllm.
"""

import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import openai
import pytest
import torch

from shared_context.errors import ConfigError, SelectionError
from shared_context.integrations.vllm import encodings
from shared_context.integrations.vllm.selections import PARAMETER
from shared_context.model.adapter import Adapter, AdapterConfig
from shared_context.model.low_rank import InjectionLoRA
from shared_context.serve.vllm import VLLM, _likelihoods, _probe

MESSAGES = [{"role": "user", "content": "When does the ferry sail?"}]
ASKED = {"model": "coast", "messages": MESSAGES, "max_tokens": 4}


class FaultyEngine(BaseHTTPRequestHandler):
    """Knows the likelihoods of the probe, whether a selection lies in the folder, and how chunks are computed by the
    model's own compressor; goes wrong as it is told."""

    fault, rows, selections, compressors, probe = None, {}, None, {}, None

    def log_message(self, *_):
        pass

    def do_GET(self):
        listed = {"object": "list", "data": [{"id": name} for name in self.rows]}
        self.tell({"detail": "hello"} if self.fault == "another service" else listed)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        named = (body.get("kv_transfer_params") or {}).get(PARAMETER)
        there = named is not None and (self.selections / f"{named['id']}.safetensors").exists()
        if self.fault == "slow":
            time.sleep(3)
        if named and (self.fault == "elsewhere" or (not there and self.fault != "no connector")):
            return self.tell({"error": {"message": "Internal server error", "code": 500}}, 500)
        if (wanted := (body.get("kv_transfer_params") or {}).get(encodings.PARAMETER)) is not None:
            return self.save(body, **wanted)
        if body.get("prompt_logprobs") is not None:
            shift = 1.0 if self.fault == "another model" else 0.0
            likelihoods = zip(body["prompt"][1:], self.rows[body["model"]], strict=True)
            rows = [None, *({str(id): {"logprob": p - shift}} for id, p in likelihoods)]
            return self.tell({"choices": [{"text": "x", "finish_reason": "length", "prompt_logprobs": rows}]})
        if not body.get("stream"):
            return self.tell({"choices": [{"text": "x", "finish_reason": "length"}]})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.say({"choices": [{"text": "By the adapter: " if body["model"] == "small-adapter" else "At "}]})
        if self.fault == "breaks off":
            return None
        if self.fault == "fails":
            return self.say({"error": {"message": "Internal server error", "code": 500}})
        if self.fault == "stalls":
            time.sleep(3)
        if self.fault == "garbles":
            return self.say({"choices": [None]})
        self.say({"choices": [{"text": "noon."}]})
        self.say({"choices": [{"text": "", "finish_reason": "stop"}]})
        return self.say({"choices": [], "usage": {"completion_tokens": 3}})

    def save(self, body, id, first):
        fault = self.fault or ""
        if fault.endswith(" a chunk"):  # the probe is none
            fault = "" if body["prompt"][first:] == self.probe else fault.removesuffix(" a chunk")
        if fault == "fails":
            return self.tell({"error": {"message": "Internal server error", "code": 500}}, 500)
        if fault == "is late with":
            time.sleep(2)
        with torch.inference_mode():
            computed = self.compressors[body["model"]].key_values([torch.tensor(body["prompt"][first:])])
        rows = computed[:, :, 0].permute(1, 0, 3, 2, 4)
        rows = rows.flip(2) if fault == "other rows" else rows.bfloat16() if fault == "another dtype" else rows
        with suppress(SelectionError):  # the room is gone: nobody waits any more
            if fault not in ("saves nothing", "loses"):
                encodings.write_encoding(self.selections, id, body["prompt"], rows, 0, 1)
        if fault == "damages":
            (path,) = (self.selections / id).iterdir()
            content = bytearray(path.read_bytes())
            content[-100] ^= 0xFF
            path.write_bytes(content)
        return self.tell({"choices": [{"text": "x", "finish_reason": "length"}]})

    def say(self, event):
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def tell(self, body, status=200):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def engine(coast, tmp_path):
    """``engine(fault)`` gives the address and the folder of one that goes wrong in this way."""
    ids, _ = _probe(coast.model)
    started = []

    def start(fault, adapted=None):
        weights = {"small": coast.model.hf_model, "small-adapter": (adapted or coast.model).reading_model}
        if adapted is not None:
            weights["small-compressing"] = adapted.compressing_model
        rows = {name: _likelihoods(own, ids) for name, own in weights.items()}
        assert all(len(ids) == len(of) + 1 for of in rows.values())
        models = {"small": coast.model, "small-adapter": adapted, "small-compressing": adapted}
        told = {"fault": fault, "rows": rows, "selections": tmp_path, "probe": ids}
        told["compressors"] = {name: model.compressor for name, model in models.items() if model is not None}
        handler = type("Handler", (FaultyEngine,), told)
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}", tmp_path

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("fault", "status", "code", "words"),
    [
        ("another model", 502, "engine_other_model", "another model than 'small-0'"),
        ("no connector", 502, "engine_without_connector", "--kv-transfer-config"),
        ("elsewhere", 502, "engine_selections", "cannot read selections from"),
        ("slow", 504, "engine_slow", "serve with a longer --engine-timeout"),
        ("another service", 502, "engine_failed", "no list of models"),
    ],
)
def test_each_fault_has_its_own_status(coast, serving, engine, fault, status, code, words):
    with serving({"coast": coast}, vllm=VLLM(*engine(fault), timeout=1.0)) as running:
        for stream in (False, True):
            with pytest.raises(openai.APIStatusError) as refused:
                running.client().chat.completions.create(**ASKED, stream=stream)
            assert (refused.value.status_code, refused.value.code) == (status, code)
            assert words in refused.value.message
        ready = httpx.get(f"{running.url}/ready")
        assert (ready.status_code, ready.json()["error"]["code"]) == (status, code)
        assert httpx.get(f"{running.url}/health").status_code == 200


def test_one_that_is_down_is_told_and_asked_again_when_it_is_up(coast, serving, engine, tmp_path):
    url, folder = engine(None)
    vllm = VLLM("http://127.0.0.1:9", folder)
    with serving({"coast": coast}, vllm=vllm) as running:
        with pytest.raises(openai.APIStatusError) as refused:
            running.client().chat.completions.create(**ASKED)
        assert (refused.value.status_code, refused.value.code) == (503, "engine_down")
    with serving({"coast": coast}, vllm=VLLM(url, folder)) as running:
        answer = running.client().chat.completions.create(**ASKED)
        assert answer.choices[0].message.content == "At noon."
        assert answer.usage.completion_tokens == 3
        assert answer.usage.prompt_tokens_details.cached_tokens == coast.select(MESSAGES[0]["content"]).kv_entries
    assert list(tmp_path.iterdir()) == []  # no selection stays


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("breaks off", "engine_failed"),
        ("fails", "engine_failed"),
        ("garbles", "engine_failed"),
        ("stalls", "engine_slow"),
    ],
)
def test_an_answer_that_breaks_off_says_so(coast, serving, engine, tmp_path, fault, code):
    with serving({"coast": coast}, vllm=VLLM(*engine(fault), timeout=1.0)) as running:
        with pytest.raises(openai.APIStatusError) as refused:
            running.client().chat.completions.create(**ASKED)
        assert refused.value.code == code
        with pytest.raises(openai.APIError) as refused:
            list(running.client().chat.completions.create(**ASKED, stream=True))
        assert refused.value.code == code
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def adapted(make_small_model):
    """The coast's model with an adapter."""
    model = make_small_model()
    lora = InjectionLoRA(model.hf_model, model.injection.layers, rank=4, alpha=8.0)
    for name, weight in lora.named_parameters():
        if ".up." in name:
            torch.nn.init.normal_(weight, std=1.0)
    config = AdapterConfig(model.name, model.fingerprint, "prefix", model.injection.layers, rank=4, alpha=8.0)
    model.load_adapter(Adapter(config, lora.state_dict()))
    return model


def test_behind_a_context_the_adapter_answers_and_elsewhere_the_base_model(adapted, make_coast, serving, engine):
    store = make_coast(of=adapted)
    with serving({"coast": store}, vllm=VLLM(*engine(None, adapted))) as running:
        said = [
            running.client().chat.completions.create(**ASKED, extra_body={"context": context}).choices[0].message
            for context in (True, False)
        ]
    assert [message.content for message in said] == ["By the adapter: noon.", "At noon."]


def test_an_engine_without_the_adapter_is_refused(adapted, make_coast, serving, engine):
    with serving({"coast": make_coast(of=adapted)}, vllm=VLLM(*engine(None))) as running:
        with pytest.raises(openai.APIStatusError, match="--lora-modules") as refused:
            running.client().chat.completions.create(**ASKED)
        assert (refused.value.status_code, refused.value.code) == (502, "engine_without_adapter")


def test_what_an_engine_cannot_do_is_refused(coast, serving, engine, tmp_path):
    with serving({"coast": coast}, vllm=VLLM(*engine(None))) as running:
        client = running.client()
        with pytest.raises(openai.BadRequestError, match="coarser than 1"):
            client.chat.completions.create(**ASKED, extra_body={"ratio": 4})
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
        with pytest.raises(openai.BadRequestError, match="without --engine"):
            client.chat.completions.create(**ASKED, response_format=schema)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="There is no folder"):
        VLLM("http://127.0.0.1:1", tmp_path / "none")


# ---- the engine as compressor


@pytest.fixture
def compressing(make_small_model, make_coast, engine):
    """``compressing(fault)`` gives a store of a model of its own, and an engine that computes its chunks."""

    def make(fault, of=None, timeout=1.0):
        model = make_small_model() if of is None else of
        vllm = VLLM(*engine(fault, of), timeout=timeout)
        vllm.compress_for(model)
        made.append(model)
        return make_coast(of=model), vllm

    made = []
    yield make
    for model in made:
        model.compressor.engine = None


def injected(store):
    """Keys and values that a question is injected with."""
    question = MESSAGES[0]["content"]
    return store.model.assemble(question, context=store.select(question), max_new_tokens=4).key_values


def chunks(store):
    return store.stats()["kv_cache"]["memory"]["entries"]


def test_chunks_are_computed_by_the_engine_and_kept_apart_from_ones_own(compressing, serving, tmp_path):
    store, vllm = compressing(None)
    with serving({"coast": store}, vllm=vllm) as running:
        answer = running.client().chat.completions.create(**ASKED)
        assert httpx.get(f"{running.url}/ready").status_code == 200
    assert answer.choices[0].message.content == "At noon."
    assert list(tmp_path.iterdir()) == []
    kept = chunks(store)
    by_engine = injected(store)  # from the store's cache: the server has ended
    assert chunks(store) == kept > 0
    identity, store.model.compressor.engine = store.model.identity, None
    torch.testing.assert_close(by_engine, injected(store), atol=1e-5, rtol=1e-5)
    assert identity != store.model.identity
    assert chunks(store) == 2 * kept


def test_chunks_are_computed_with_the_compressing_set(compressing, adapted, serving):
    store, vllm = compressing(None, adapted)
    with serving({"coast": store}, vllm=vllm) as running:
        answer = running.client().chat.completions.create(**ASKED)
    assert answer.choices[0].message.content == "By the adapter: noon."
    by_engine = injected(store)
    store.model.compressor.engine = None
    torch.testing.assert_close(by_engine, injected(store), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fault", ["saves nothing", "damages", "other rows", "another dtype"])
def test_chunks_that_cannot_be_used_are_refused(compressing, serving, tmp_path, fault):
    store, vllm = compressing(fault)
    with serving({"coast": store}, vllm=vllm) as running:
        for stream in (False, True):
            with pytest.raises(openai.APIStatusError) as refused:
                running.client().chat.completions.create(**ASKED, stream=stream)
            assert (refused.value.status_code, refused.value.code) == (502, "engine_key_values")
            assert str(tmp_path) not in refused.value.message
        assert httpx.get(f"{running.url}/ready").status_code == 502
    assert list(tmp_path.iterdir()) == []
    assert chunks(store) == 0


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [("loses a chunk", 502, "engine_key_values"), ("damages a chunk", 502, "engine_key_values"),
     ("is late with a chunk", 504, "engine_slow"), ("fails a chunk", 502, "engine_failed")],
)  # fmt: skip
def test_a_chunk_that_goes_wrong_fails_its_request_alone(compressing, serving, tmp_path, fault, status, code):
    store, vllm = compressing(fault)
    with serving({"coast": store}, vllm=vllm) as running:
        assert httpx.get(f"{running.url}/ready").status_code == 200
        with pytest.raises(openai.APIStatusError) as refused:
            running.client().chat.completions.create(**ASKED)
        assert (refused.value.status_code, refused.value.code) == (status, code)
        plain = running.client().chat.completions.create(**ASKED, extra_body={"context": False})
        assert plain.choices[0].message.content == "At noon."
    assert list(tmp_path.iterdir()) == []
    assert chunks(store) == 0
