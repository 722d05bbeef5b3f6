"""Many at once: turns, a queue that ends, clients that go away, changes beside, an orderly end."""

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from shared_context.serve import ServeConfig

MESSAGES = [{"role": "user", "content": "When does the ferry sail?"}]
ASKED = {"model": "coast", "messages": MESSAGES, "max_tokens": 4}
LONG = {**ASKED, "max_tokens": 1000}


def eventually(holds, seconds=60.0):
    """Waits for what happens in another thread."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def narrow(coast, serving):
    """A server that writes one answer at a time and lets one more wait."""
    with serving({"coast": coast}, config=ServeConfig(parallel=1, queue=1)) as running:
        yield running


def engine_of(running):
    return running.server.config.app.state.room.engine


def test_answers_of_many_clients_are_those_of_one(served, client):
    questions = ["When does the ferry sail?", "What does a goat pay?", "Who trims the lamp?", "What burns?"]

    def ask(question):
        messages = [{"role": "user", "content": question}]
        return client.chat.completions.create(**{**ASKED, "messages": messages}).choices[0].message.content

    alone = [ask(question) for question in questions]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, questions * 3)) == alone * 3


def test_a_short_answer_does_not_wait_for_a_long_one(served, client):
    with client.chat.completions.create(**LONG, stream=True) as long:
        next(iter(long))
        assert client.chat.completions.create(**ASKED).choices
        assert engine_of(served).running == 1  # the long one is written still


def test_a_full_queue_says_when_to_come_back(narrow):
    client = narrow.client()
    engine = engine_of(narrow)
    with ThreadPoolExecutor(1) as pool, client.chat.completions.create(**LONG, stream=True):
        waiting = pool.submit(client.chat.completions.create, **ASKED)
        eventually(lambda: engine.waiting == 1)
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(**ASKED)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert refused.value.code == "queue_full"
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**ASKED, stream=True)
        connection = http.client.HTTPConnection(*narrow.address)
        connection.request("GET", "/ready")
        assert connection.getresponse().status == 503
    assert waiting.result().choices  # it got its turn when the long one's client went away
    eventually(lambda: engine.admitted == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_ends_when_its_client_goes_away(narrow, stream):
    engine = engine_of(narrow)
    connection = http.client.HTTPConnection(*narrow.address)
    body = json.dumps({**LONG, "stream": stream})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    eventually(lambda: engine.running == 1)
    connection.sock.close()
    eventually(lambda: engine.running == 0)
    assert narrow.client().chat.completions.create(**ASKED).choices


def test_one_that_waits_may_go_away_too(narrow):
    engine, client = engine_of(narrow), narrow.client()
    with client.chat.completions.create(**LONG, stream=True):
        connection = http.client.HTTPConnection(*narrow.address)
        connection.request("POST", "/v1/chat/completions", json.dumps(ASKED), {"Content-Type": "application/json"})
        eventually(lambda: engine.waiting == 1)
        connection.sock.close()
        eventually(lambda: engine.waiting == 0)
        assert engine.running == 1


def test_the_end_waits_for_what_is_asked(coast, serving):
    with serving({"coast": coast}) as running:
        stream = running.client().chat.completions.create(**{**LONG, "max_tokens": 200}, stream=True)
        first = next(stream)
        running.server.should_exit = True
        rest = list(stream)
    assert first.choices and rest[-1].choices[0].finish_reason == "length"
    with pytest.raises(openai.APIConnectionError):
        running.client().models.list()


def test_changes_do_not_stop_answers(make_coast, serving):
    store = make_coast()
    stop = threading.Event()

    def change():
        number = 0
        while not stop.is_set():
            store.add(f"Note {number}: the tide was high. " * 40, id=f"note-{number}")
            store.delete(f"note-{number}")
            number += 1
        return number

    with serving({"coast": store}) as running, ThreadPoolExecutor(1) as pool:
        changes = pool.submit(change)
        client = running.client()
        try:
            answers = [client.chat.completions.create(**ASKED).choices[0].message for _ in range(8)]
        finally:
            stop.set()
        assert len(answers) == 8 and changes.result() >= 1
