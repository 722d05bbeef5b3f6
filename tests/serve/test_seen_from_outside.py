"""Health, figures, traces and the log."""

import json
import logging

import httpx
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shared_context.serve.logs import JsonLines

SECRET = "Does Perpetua keep a mandrill?"
ASKED = {"model": "coast", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 3}


def test_it_is_alive_and_ready(served):
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{served.url}/ready").json() == {"status": "ready"}


def test_figures_count_what_was_asked_and_answered(served, client):
    def figure(name):
        lines = httpx.get(f"{served.url}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    answers = 'shared_context_requests_total{route="/v1/chat/completions",status="200"}'
    names = [
        answers,
        'shared_context_tokens_total{kind="injected"',
        'shared_context_tokens_total{kind="completion"',
        "shared_context_first_token_seconds_count",
        "shared_context_selection_seconds_count",
    ]
    before = [figure(name) for name in names]
    usage = client.chat.completions.create(**ASKED).usage
    added = [figure(name) - was for name, was in zip(names, before, strict=True)]
    assert added == [1, usage.prompt_tokens_details.cached_tokens, usage.completion_tokens, 1, 1]
    assert figure("shared_context_running ") == figure("shared_context_waiting ") == 0
    assert figure('shared_context_kv_cache_bytes{store="coast",tier="memory"}') > 0
    assert "mandrill" not in httpx.get(f"{served.url}/metrics").text


def test_a_request_is_one_trace_without_its_text(coast, serving):
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with serving({"coast": coast}, tracer_provider=provider) as running:
        usage = running.client().chat.completions.create(**ASKED).usage
        bad = httpx.post(f"{running.url}/v1/chat/completions", json={**ASKED, "filters": {"a": {"$b": 1}}})
        assert bad.status_code == 400
    good = [span for span in spans.get_finished_spans() if not span.attributes.get("error.type")]
    assert [span.name for span in good] == ["select", "encode", "first_token", "chat coast"]
    whole = good[-1]
    assert {span.context.trace_id for span in good} == {whole.context.trace_id}
    assert all(span.parent.span_id == whole.context.span_id for span in good[:-1])
    assert whole.attributes["gen_ai.operation.name"] == "chat"
    assert whole.attributes["gen_ai.request.model"] == "coast"
    assert whole.attributes["gen_ai.usage.output_tokens"] == usage.completion_tokens
    failed = [span for span in spans.get_finished_spans() if span.attributes.get("error.type")]
    assert {span.attributes["error.type"] for span in failed} == {"FilterError"}
    assert "mandrill" not in " ".join(span.to_json() for span in spans.get_finished_spans())


def test_the_log_is_json_with_ids_and_without_text(served, client, caplog):
    caplog.set_level(logging.INFO, logger="shared_context.serve")
    answer = client.chat.completions.with_raw_response.create(**ASKED)
    httpx.get(f"{served.url}/v1/vector_stores/coast/files/coast/ferry.md")
    client.models.list()  # a line is written behind its answer
    lines = [JsonLines().format(record) for record in caplog.records if hasattr(record, "fields")]
    told = [json.loads(line) for line in lines]
    (own,) = [line for line in told if line["request_id"] == answer.headers["x-request-id"]]
    assert (own["route"], own["status"], own["store"]) == ("/v1/chat/completions", 200, "coast")
    assert own["tokens"] == answer.parse().usage.completion_tokens
    list(client.chat.completions.create(**ASKED, stream=True))
    client.models.list()
    fields = [record.fields for record in caplog.records if hasattr(record, "fields")]
    streamed = [told for told in fields if told["route"] == "/v1/chat/completions"][-1]
    assert (streamed["tokens"], streamed["injected"]) == (own["tokens"], own["injected"])
    assert "/v1/vector_stores/{name}/files/{id:path}" in [line["route"] for line in told]  # documents are not named
    assert "mandrill" not in "".join(lines)


def test_what_fails_is_logged_without_what_it_says(served, client, coast, caplog, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError(SECRET)

    monkeypatch.setattr(coast, "select", fail)
    caplog.set_level(logging.INFO, logger="shared_context.serve")
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=ASKED, headers={"X-Request-Id": "failing"})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    client.models.list()  # a line is written behind its answer
    failed = [record for record in caplog.records if getattr(record, "fields", {}).get("request_id") == "failing"]
    (line,) = map(JsonLines().format, failed)
    assert json.loads(line)["failure"][0] == "RuntimeError"
    assert "mandrill" not in line and "mandrill" not in answer.text
