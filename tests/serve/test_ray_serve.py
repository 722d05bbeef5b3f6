"""The endpoint on Ray Serve: its answers are those of the endpoint in one process."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import yaml

from shared_context import Document
from shared_context.errors import ConfigError, ShardUnavailableError, StoreFormatError
from shared_context.remote.publishing import push
from shared_context.serve.access import add_key
from shared_context.shards import ShardedContextStore

serve = pytest.importorskip("ray.serve")

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.exceptions import RayActorError  # noqa: E402
from ray.serve.schema import ServeDeploySchema  # noqa: E402

from shared_context.serve.ray import Fronts, Handles, app  # noqa: E402

DEPLOYMENTS = ["front", "boats-shard-000", "boats-shard-001"]
DEPLOY = Path(__file__).parent.parent.parent / "deploy"
DOCUMENTS = [
    Document(f"The keeper of lamp {number} paints boat {number * 3} and sleeps.", f"d{number}", {"lamp": number})
    for number in range(12)
]


@pytest.fixture(scope="module")
def small(make_small_model, tmp_path_factory):
    """A model that processes load from a folder."""
    from shared_context import SharedLLMModel

    folder = tmp_path_factory.mktemp("model")
    made = make_small_model()
    made.hf_model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return SharedLLMModel.from_pretrained(str(folder), adapter=None, dtype="float32")


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "boats.shards"
    with ShardedContextStore.create(small, folder, 2, embedder=None) as store:
        store.add(DOCUMENTS)
    return folder


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    return add_key(file, "ann", stores=["boats"], writes=True), str(file)


@pytest.fixture(scope="module")
def cluster():
    """Address of the endpoint in a cluster of two nodes, and what kills one of them."""
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    memory = {"object_store_memory": 100 << 20}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **memory})
    other = nodes.add_node(num_cpus=1, **memory)
    ray.init(address=nodes.address, log_to_driver=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"port": port})
    yield f"http://127.0.0.1:{port}", partial(nodes.remove_node, other, allow_graceful=False)
    serve.shutdown()
    ray.shutdown()
    nodes.shutdown()


def ask(url: str, number: int, key: str = "none", retries: int = 8) -> str:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=retries, timeout=120)
    messages = [{"role": "user", "content": f"Who paints boat {number}?"}]
    done = client.chat.completions.create(
        model="boats", messages=messages, max_tokens=12, temperature=0, extra_body={"budget": 64}
    )
    return done.choices[0].message.content


@pytest.fixture(scope="module")
def running(cluster, folder, key):
    _, keys = key
    serve.run(app(Fronts(stores=[str(folder)], keys=keys, dtype="float32")), name="boats")
    return cluster[0]


@pytest.fixture(scope="module")
def expected(small, folder, serving):
    with ShardedContextStore(small, folder) as store, serving({"boats": store}) as plain:
        return [ask(plain.url, number) for number in range(6)]


@pytest.mark.slow
def test_answers_are_those_of_one_process_and_nothing_is_changed(running, expected, key):
    secret, _ = key
    assert [ask(running, number, secret) for number in range(6)] == expected
    with pytest.raises(openai.AuthenticationError):
        ask(running, 0)
    sent = {"files": {"file": ("new.txt", b"New.")}, "data": {"purpose": "assistants"}}
    refused = httpx.post(f"{running}/v1/files", headers={"Authorization": f"Bearer {secret}"}, **sent)
    assert refused.status_code == 403 and "a server that takes documents" in refused.text


def replicas(deployment: str) -> list[psutil.Process]:
    """Processes of a deployment in the cluster that this one began."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "".join(process.cmdline()[:1]).startswith(f"ray::ServeReplica:boats:{deployment}"):
                found.append(process)
    return found


def answers_while(kill: Callable[[], object], url: str, secret: str) -> list[str]:
    """Answers to questions of which the first is answered when something is killed."""
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, url, number, secret, retries=60) for number in range(6)]
        wait(asked, return_when=FIRST_COMPLETED)
        kill()
        return [one.result() for one in asked]


@pytest.mark.slow
@pytest.mark.parametrize("deployment", ["front", "boats-shard-000"])
def test_what_the_dead_were_asked_is_answered_when_it_is_asked_again(running, expected, key, deployment):
    (victim,) = replicas(deployment)
    assert answers_while(victim.kill, running, key[0]) == expected
    assert victim not in replicas(deployment)


@pytest.fixture(scope="module")
def replicated(cluster, folder, key, tmp_path_factory):
    """The application of a file that asks for a replica of each deployment on each node, of a published store."""
    place = tmp_path_factory.mktemp("published")
    address = (place / "boats").as_uri()
    push(folder, address)
    twice = {"num_replicas": 2, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 0.1}}
    file = place / "serve.yaml"
    content = {
        "http_options": {"port": int(cluster[0].rpartition(":")[2])},
        "applications": [
            {
                "name": "boats",
                "import_path": "shared_context.serve.ray:app",
                "args": {"stores": [f"boats={address}"], "keys": key[1], "dtype": "float32"},
                "deployments": [{"name": name, **twice} for name in DEPLOYMENTS],
            }
        ],
    }
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "--non-blocking", str(file)]
    address_of_cluster = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    subprocess.run(command, env=os.environ | address_of_cluster, check=True, timeout=300)
    return cluster


def wait_for_both() -> list[list[psutil.Process]]:
    """The two replicas of each deployment, once they run."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        boats = serve.status().applications["boats"]
        states = [deployment.replica_states for deployment in boats.deployments.values()]
        if boats.status == "RUNNING" and states == [{"RUNNING": 2}] * len(DEPLOYMENTS):
            return [replicas(deployment) for deployment in DEPLOYMENTS]
        time.sleep(0.5)
    raise AssertionError(serve.status())


@pytest.mark.slow
def test_one_of_two_replicas_of_each_deployment_may_die(replicated, expected, key):
    both = wait_for_both()
    assert [len(of) for of in both] == [2, 2, 2]
    assert answers_while(lambda: [of[0].kill() for of in both], replicated[0], key[0]) == expected
    assert [ask(replicated[0], number, key[0], retries=60) for number in range(6)] == expected


@pytest.mark.slow
def test_one_of_two_nodes_may_die(replicated, expected, key):
    url, kill_node = replicated
    both = wait_for_both()
    assert answers_while(kill_node, url, key[0]) == expected
    assert [sum(process.is_running() for process in of) for of in both] == [1, 1, 1]
    assert [ask(url, number, key[0], retries=60) for number in range(6)] == expected


class DiesOnce:
    """A shard's handle whose first answer is that its process has died."""

    def __init__(self):
        self.ask, self.asked = self, []

    def remote(self, *question):
        self.asked.append(question)
        return self

    def result(self, timeout_s):
        if len(self.asked) == 1:
            raise RayActorError
        return len(self.asked)


def test_a_shard_that_has_died_is_asked_again_until_it_is_late():
    handle = DiesOnce()
    assert Handles([handle], timeout=10).ask({0: ("state", (None,))}) == {0: 2}
    assert handle.asked == [("state", (None,))] * 2
    assert isinstance(Handles([DiesOnce()], timeout=0.01).ask({0: ("state", ())})[0], ShardUnavailableError)


def test_what_is_served_to_whom_must_be_said(small, folder, tmp_path):
    with pytest.raises(ConfigError, match="anyone: true"):
        app(Fronts(stores=[str(folder)]))
    with pytest.raises(ConfigError, match="absolute folder"):
        app(Fronts(stores=["boats.shards"], anyone=True))
    with pytest.raises(ConfigError, match="engine and selections"):
        app(Fronts(stores=[str(folder)], anyone=True, engine="http://127.0.0.1:8001"))
    with pytest.raises(StoreFormatError, match="no store in"):
        app(Fronts(stores=[str(tmp_path / "nothing")], anyone=True))
    with pytest.raises(ValueError, match="budgets"):
        Fronts(stores=[str(folder)], budgets=3)


@pytest.mark.parametrize("file", ["ray-serve.yaml", "kuberay.yaml"])
def test_the_files_that_ship_are_ones_that_ray_serve_takes(file, folder, tmp_path, monkeypatch):
    content = yaml.safe_load((DEPLOY / file).read_text(encoding="utf-8"))
    if content.get("kind") == "RayService":
        content = yaml.safe_load(content["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema(**content).applications
    module, _, name = application.import_path.partition(":")
    build = getattr(import_module(module), name)
    given = Fronts(**application.args)
    built = build(given.model_copy(update={"stores": [f"handbook={folder}"]}))
    assert built._bound_deployment.name == "front"
    known = {"front", *(f"handbook-shard-{number:03}" for number in range(2))}
    assert {deployment.name for deployment in application.deployments} <= known
