"""What is wrong with a request has a status and words of its own, in OpenAI's form, and the server goes on."""

import http.client
import json
import socket

import openai
import pytest

MESSAGES = [{"role": "user", "content": "When does the ferry sail?"}]
ASKED = {"model": "coast", "messages": MESSAGES, "max_tokens": 2}


@pytest.fixture
def post(served):
    """Sends a body as it is; returns status, the error and the headers."""

    def send(body: bytes | dict, path="/v1/chat/completions", method="POST", **headers):
        connection = http.client.HTTPConnection(*served.address, timeout=60)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        said = json.loads(answer.read())
        connection.close()
        return answer.status, said.get("error", said), answer.headers

    return send


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "missing or no JSON object"),
        (b"{", "no JSON"),
        (b"hello", "no JSON"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[1, 2]", "no JSON object"),
        (b"null", "missing or no JSON object"),
        (b"[" * 100_000 + b"]" * 100_000, "nested"),
        (b'{"model":' * 50_000 + b"1" + b"}" * 50_000, "nested"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b'{"\\ud800": 1}', "lone surrogate"),
    ],
)
def test_bodies_that_are_no_request(post, body, said):
    status, error, _ = post(body)
    assert status == 400
    assert error["type"] == "invalid_request_error"
    assert said in error["message"]


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("model", 7, "model"),
        ("messages", "hello", "messages"),
        ("messages", [], "messages"),
        ("messages", [{"role": "user"}], "messages.0"),
        ("messages", [{"role": "king", "content": "x"}], "messages.0.role"),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}], "messages.0.content"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", "8", "max_tokens"),
        ("max_tokens", True, "max_tokens"),
        ("temperature", "hot", "temperature"),
        ("temperature", -1, "temperature"),
        ("top_p", 0, "top_p"),
        ("n", 2, "n"),
        ("seed", 2**70, "seed"),
        ("stop", [1], "stop"),
        ("stream", "yes", "stream"),
        ("logit_bias", {"7": 1}, "logit_bias"),
        ("frequency_penalty", 0.5, "frequency_penalty"),
        ("tools", [{"type": "function"}], "tools"),
        ("response_format", {"type": "json_schema"}, "response_format"),
        ("budget", 0, "budget"),
        ("budget", 1.5, "budget"),
        ("filters", "tower", "filters"),
        ("policy", "magic", "policy"),
        ("buget", 7, "buget"),
        ("stop", ["\ud800"], "stop"),
        ("conversation", "\ud800", "conversation"),
        ("doc_ids", ["\ud800"], "doc_ids"),
    ],
)
def test_a_wrong_field_is_named(post, field, value, param):
    status, error, _ = post({**ASKED, field: value})
    assert status == 400
    assert error["param"].startswith(param), error


@pytest.mark.parametrize(
    ("extra", "code", "said"),
    [
        ({"filters": {"tower": {"$near": 1}}}, "filters", "$near"),
        ({"max_tokens": 5000}, "context_length_exceeded", "2048"),
        ({"messages": [{"role": "user", "content": " "}]}, None, "empty"),
        ({"messages": [{"role": "user", "content": "boat " * 5000}]}, None, "tokens"),
        ({"messages": [{"role": "user", "content": "x"}] * 50_000}, "context_length_exceeded", "50,000 messages"),
        ({"doc_ids": ["coast/plane.md"]}, "document_not_found", "coast/plane.md"),
        ({"ratio": 4, "budget": 8}, None, "exclude"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_library_refuses_is_said_in_its_words(post, extra, code, said, stream):
    status, error, _ = post({**ASKED, **extra, "stream": stream})
    assert status == (404 if code == "document_not_found" else 400)
    assert said in error["message"]
    if code:
        assert error["code"] == code


def test_unknown_models_are_named_with_those_that_there_are(client):
    for name in ("gpt-5", "", "../../etc/passwd", "a/b.c", "coast/", "x" * 5000, "%00", "ö\n"):
        with pytest.raises(openai.NotFoundError, match="coast"):
            client.chat.completions.create(**{**ASKED, "model": name})
    for name in ("gpt-5", "../../etc/passwd", "a/b.c", "coast.", "%2e%2e"):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)


def test_addresses_and_methods_that_there_are_not(post):
    status, error, _ = post({}, path="/v1/embeddings")
    assert status == 404 and "/v1/embeddings" in error["message"]
    status, error, _ = post(b"", path="/v1/chat/completions", method="GET")
    assert status == 405 and "GET" in error["message"]


def test_a_body_that_is_too_large_is_refused_before_it_is_read(served, post):
    connection = http.client.HTTPConnection(*served.address, timeout=60)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(50 * 2**20))
    connection.endheaders()  # and not a byte of it
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"]["code"] == "body_too_large"
    connection.close()


def test_one_that_does_not_say_how_large_it_is_is_refused_too(served):
    def parts():
        for _ in range(50):
            yield b"[" * 2**20

    connection = http.client.HTTPConnection(*served.address, timeout=60)
    headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    try:
        connection.request("POST", "/v1/chat/completions", parts(), headers, encode_chunked=True)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it is not read to its end
    else:
        assert connection.getresponse().status == 413
    connection.close()


def test_an_id_of_ones_own_is_given_back_and_a_strange_one_is_not(post):
    assert post(ASKED, **{"X-Request-Id": "mine-1"})[2]["x-request-id"] == "mine-1"
    assert post(ASKED, **{"X-Request-Id": "{not mine}"})[2]["x-request-id"] != "{not mine}"


def test_a_client_that_stops_half_way_hurts_nobody(served, client):
    for sent in (b"", b"POST /v1/chat/compl", b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"):
        with socket.create_connection(served.address) as half:
            half.sendall(sent)
            half.shutdown(socket.SHUT_WR)
            half.recv(1024)
    assert client.chat.completions.create(**ASKED).choices


def test_a_store_that_is_closed_while_it_is_served(make_coast, serving):
    store = make_coast()
    with serving({"coast": store}) as running:
        store.close()
        with pytest.raises(openai.InternalServerError) as refused:
            running.client().chat.completions.create(**ASKED)
        assert refused.value.status_code == 503
        assert refused.value.code == "store_unavailable"
        assert running.client().models.list().data
