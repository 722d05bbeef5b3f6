"""Keys: who has one, what it shows, and that nothing of the others can be told."""

import json
import stat

import httpx
import openai
import pytest
from typer.testing import CliRunner

from shared_context.cli.main import app
from shared_context.errors import ConfigError
from shared_context.serve.access import Caller, Keys, add_key, revoke_key

QUESTION = {"messages": [{"role": "user", "content": "Who is where?"}], "max_tokens": 2}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.json"


@pytest.fixture
def tenants(make_coast, serving, file, tmp_path):
    """A server of two stores, and its keys: of the whole, of the towers of one store, of the rest of it."""
    keys = {
        "owner": add_key(file, "owner", writes=True, operates=True),
        "tower": add_key(file, "tower", stores=["coast"], filters={"tower": True}, writes=True),
        "ferry": add_key(file, "ferry", stores=["coast"], filters={"tower": False}),
    }
    stores = {"coast": make_coast(), "inland": make_coast()}
    with serving(stores, keys=Keys(file), data=tmp_path / "data") as running:
        yield running, keys


def test_without_a_key_nothing_is_answered(tenants):
    running, _ = tenants
    for key in ("none", "sk-", "sk-" + "x" * 43, "ö"):
        answer = httpx.get(f"{running.url}/v1/models", headers={"Authorization": f"Bearer {key}".encode()})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    with pytest.raises(openai.AuthenticationError):
        running.client("wrong").models.list()
    answer = httpx.get(f"{running.url}/v1/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "missing_api_key")
    assert httpx.get(f"{running.url}/metrics").status_code == 401
    assert httpx.get(f"{running.url}/health").status_code == 200


def test_a_store_that_a_key_is_not_for_is_as_one_that_there_is_not(tenants):
    running, keys = tenants
    client = running.client(keys["ferry"])
    assert [one.id for one in client.models.list()] == ["coast"]
    said = []
    for name in ("inland", "atlantis"):
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(model=name, **QUESTION)
        said.append(str(refused.value).replace(name, "NAME"))
    assert said[0] == said[1]
    assert [one.id for one in client.vector_stores.list()] == ["coast"]


def test_a_keys_filters_hold_for_every_call(tenants):
    running, keys = tenants
    client = running.client(keys["ferry"])
    for filters in (None, {"tower": True}, {"$or": [{"tower": True}, {"tower": False}]}, {"$not": {"tower": False}}):
        answer = client.chat.completions.create(model="coast", **QUESTION, extra_body={"filters": filters})
        cited = answer.choices[0].message.to_dict()["annotations"]
        assert {one["file_citation"]["file_id"] for one in cited} <= {"coast/ferry.md"}
        found = client.vector_stores.search("coast", query="lamp and horn", filters=filters or openai.omit).data
        assert {one.file_id for one in found} <= {"coast/ferry.md"}
    assert [one.id for one in client.vector_stores.files.list("coast")] == ["coast/ferry.md"]
    store = client.vector_stores.retrieve("coast")
    assert (store.file_counts.total, store.usage_bytes) == (1, 0)
    said = []
    for id in ("coast/lighthouse.md", "coast/nothing.md"):
        with pytest.raises(openai.NotFoundError) as refused:
            client.vector_stores.files.retrieve(id, vector_store_id="coast")
        said.append(str(refused.value).replace(id, "ID"))
    assert said[0] == said[1]


def test_doc_ids_do_not_tell_of_other_tenants_documents(tenants):
    running, keys = tenants
    client = running.client(keys["ferry"])
    said = []
    for id in ("coast/lighthouse.md", "coast/nothing.md"):
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(model="coast", **QUESTION, extra_body={"doc_ids": [id]})
        said.append(str(refused.value).replace(id, "ID"))
    assert said[0] == said[1]


def test_what_a_key_adds_is_its_own(tenants):
    running, keys = tenants
    tower, owner = running.client(keys["tower"]), running.client(keys["owner"])
    file = tower.vector_stores.files.upload_and_poll(vector_store_id="coast", file=("bell.md", b"The bell is bronze."))
    assert file.attributes["tower"] is True
    for other in (running.client(keys["ferry"]), owner):
        with pytest.raises(openai.NotFoundError):
            other.files.retrieve(file.id)
    assert file.id in [one.id for one in owner.vector_stores.files.list("coast")]
    assert file.id not in [one.id for one in running.client(keys["ferry"]).vector_stores.files.list("coast")]
    again = tower.vector_stores.files.create("coast", file_id=file.id, attributes={"tower": False})
    assert again.attributes["tower"] is True


def test_a_key_does_what_it_was_made_for(tenants):
    running, keys = tenants
    client = running.client(keys["ferry"])
    refused = [
        lambda: client.files.create(file=("a.txt", b"a"), purpose="assistants"),
        lambda: client.vector_stores.files.delete("coast/ferry.md", vector_store_id="coast"),
        lambda: client.vector_stores.create(name="new"),
        lambda: client.vector_stores.delete("coast"),
    ]
    for call in refused:
        with pytest.raises(openai.PermissionDeniedError):
            call()
    bearer = {"Authorization": f"Bearer {keys['ferry']}"}
    assert httpx.get(f"{running.url}/metrics", headers=bearer).status_code == 403


def test_conversations_of_one_name_are_each_keys_own(tenants):
    running, keys = tenants
    for name in ("tower", "ferry"):
        running.client(keys[name]).chat.completions.create(
            model="coast", **QUESTION, extra_body={"conversation": "diary"}
        )
    store = running.server.config.app.state.room.stores.get("coast", Caller("owner")).store
    assert sorted(store.conversations()) == ["ferry/diary", "tower/diary"]


def test_a_key_is_revoked_while_the_server_runs(tenants, file):
    running, keys = tenants
    client = running.client(keys["ferry"])
    assert client.models.list().data
    revoke_key(file, "ferry")
    with pytest.raises(openai.AuthenticationError, match="revoked"):
        client.models.list()
    assert running.client(add_key(file, "ferry")).models.list().data


def test_a_file_of_keys_that_breaks_lets_nobody_in(tenants, file):
    running, keys = tenants
    file.write_text("{")
    with pytest.raises(openai.AuthenticationError):
        running.client(keys["owner"]).models.list()


def test_the_file_has_no_key_in_it_and_is_its_owners(file):
    key = add_key(file, "anna", filters={"year": 2024})
    assert key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="anna"):
        add_key(file, "anna")
    with pytest.raises(ConfigError, match=r"\$near"):
        add_key(file, "berta", filters={"year": {"$near": 1}})
    with pytest.raises(ConfigError, match="anna"):
        revoke_key(file, "carla")
    file.write_text('{"keys": [{}]}')
    with pytest.raises(ConfigError, match="no file of keys"):
        Keys(file)


def test_the_command_makes_lists_and_revokes_keys(file):
    def run(*args):
        done = CliRunner().invoke(app, ["keys", *map(str, args)])
        assert done.exit_code == 0, done.output
        return done.stdout

    key = run("add", file, "anna", "--store", "coast", "--filter", "year=2024", "--write").strip()
    caller = Keys(file).caller(f"Bearer {key}")
    assert (caller.stores, caller.writes, caller.operates) == (frozenset({"coast"}), True, False)
    assert caller.sees({"year": 2024}) and not caller.sees({"year": 2023})
    assert [one["name"] for one in json.loads(run("list", file))] == ["anna"]
    run("revoke", file, "anna")
    assert json.loads(run("list", file)) == []


def test_without_keys_a_page_of_another_name_is_told_nothing(coast, serving):
    with serving({"coast": coast}, hosts={"localhost", "127.0.0.1", "::1"}) as running:
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
            answer = httpx.get(f"{running.url}/v1/models", headers={"Host": host})
            assert (answer.status_code, answer.json()["error"]["code"]) == (421, "unknown_host")
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"):
            assert httpx.get(f"{running.url}/v1/models", headers={"Host": host}).status_code == 200


def test_pages_from_elsewhere_may_not_ask_where_everybody_may(coast, serving):
    with serving({"coast": coast}, hosts={"127.0.0.1"}) as running:
        for origin in ("https://evil.example", "http://127.0.0.1.evil.example:8000", "null"):
            upload = {"headers": {"Origin": origin}, "files": {"file": b"x"}, "data": {"purpose": "assistants"}}
            answer = httpx.post(f"{running.url}/v1/files", **upload)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "unknown_origin")
        own = {"headers": {"Origin": running.url}, "files": {"file": b"x"}, "data": {"purpose": "assistants"}}
        assert httpx.post(f"{running.url}/v1/files", **own).status_code == 200


def test_keys_of_namespaces_share_a_store_and_nothing_in_it(make_coast, serving, file, tmp_path):
    keys = {name: add_key(file, name, namespace=name, writes=True) for name in ("acme", "apex")}
    keys["owner"] = add_key(file, "owner", writes=True)
    store = make_coast(tmp_path / "coast.ctx")
    with serving({"coast": store}, keys=Keys(file), data=tmp_path / "data") as running:
        client = {name: running.client(key) for name, key in keys.items()}

        def add(name, text):
            upload = client[name].files.create(file=(f"{name}.txt", text.encode()), purpose="assistants")
            done = client[name].vector_stores.files.create_and_poll(
                upload.id, vector_store_id="coast", poll_interval_ms=50
            )
            assert done.status == "completed"
            return done.id

        mine = add("acme", "The acme vault opens with a silver whistle.")
        add("apex", "The apex vault opens with a copper bell.")
        found = {}
        for name in keys:
            question = {"messages": [{"role": "user", "content": "How does the vault open?"}], "max_tokens": 2}
            answer = client[name].chat.completions.create(model="coast", **question)
            cited = " ".join(
                note.model_dump()["file_citation"]["quote"] for note in answer.choices[0].message.annotations
            )
            searched = client[name].vector_stores.search("coast", query="How does the vault open?").data
            stored = client[name].vector_stores.retrieve("coast")
            found[name] = cited + " ".join(hit.content[0].text for hit in searched), stored.file_counts.completed
        assert "silver" in found["acme"][0] and "copper" in found["apex"][0]
        assert "copper" not in found["acme"][0] and "silver" not in found["apex"][0]
        assert "ferry" not in found["acme"][0] and "vault" not in found["owner"][0]
        assert [found[name][1] for name in keys] == [1, 1, 2]
        for other in ("apex", "owner"):
            with pytest.raises(openai.NotFoundError):
                client[other].vector_stores.files.retrieve(mine, vector_store_id="coast")
            with pytest.raises(openai.NotFoundError):
                client[other].vector_stores.files.delete(mine, vector_store_id="coast")
        said = [{"role": "user", "content": "Remember the whistle."}]
        asked = {"model": "coast", "messages": said, "max_tokens": 2, "extra_body": {"conversation": "one"}}
        client["acme"].chat.completions.create(**asked)
        assert store.namespace("acme").conversation("acme/one").messages()
        assert not store.conversation("acme/one").messages() and not store.conversations()
        with pytest.raises(openai.PermissionDeniedError):
            client["acme"].vector_stores.delete("coast")
    store.close()


def test_a_key_of_a_namespace_does_not_operate(file):
    with pytest.raises(ConfigError, match="a key of a namespace is for that alone"):
        add_key(file, "acme", namespace="acme", operates=True)
    with pytest.raises(ConfigError, match="namespace of a key"):
        add_key(file, "acme", namespace="")
    key = add_key(file, "acme", namespace="acme")
    content = json.loads(file.read_text())
    content["keys"][0]["operates"] = True
    file.write_text(json.dumps(content))
    assert not Keys(file).caller(f"Bearer {key}").operates
    content["keys"][0]["namespace"] = 7
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError):
        Keys(file)
