"""Push and pull over real HTTP, with huggingface_hub as the client in a process of its own.

The client reads its endpoint and its offline switch when it is imported, hence the process.
"""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from itertools import count
from pathlib import Path

import pytest
import torch
from conftest import build_batch, build_host, logits
from fake_hub import FakeHub

from mma_adapter import MultiModalAdapter, StorageError, inject_mma, load_mma
from mma_adapter.storage import CONFIG, WEIGHTS

TOKENS = {"hf_mine": "me", "hf_other": "other"}
NUMBERS = count()


# What the client process runs


def build(seed=1, base=None):
    model = inject_mma(build_host("clip"), 3, scale=0.5, seed=seed)
    if base:
        model.mma.config = model.mma.config.__class__(
            **{**vars(model.mma.config), "base_model_name_or_path": base}
        )
    return model


def push(repo, seed=1, base=None, **options):
    info = build(seed, base).mma.push_to_hub(repo, **{"token": "hf_mine", **options})
    return {"oid": info.oid, "pr_url": info.pr_url, "message": info.commit_message}


def pull(repo, **options):
    return MultiModalAdapter.from_pretrained(repo, **options).state_dict()


def pull_logits(repo, **options):
    model = load_mma(repo, build_host("clip"), **options)
    return logits(model, build_batch(model))


def pull_with_base(repo):
    model = load_mma(repo)
    return logits(model, build_batch(model))


def expected(seed=1):
    return build(seed).mma.state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Fixtures


def client_process(hub, home, offline):
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }
    hidden = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE")
    before = {key: os.environ.get(key) for key in (*environment, *hidden)}
    try:
        for key in hidden:
            os.environ.pop(key, None)
        os.environ.update(environment)
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        pool.submit(os.getpid).result()  # starts the process while the environment is set
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
    return pool


@pytest.fixture(scope="module")
def hub():
    with FakeHub(TOKENS) as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def client(hub, home):
    with client_process(hub, home, offline=False) as pool:
        yield lambda function, *args, **options: pool.submit(function, *args, **options).result()


@pytest.fixture
def repo():
    return f"me/pets-{next(NUMBERS)}"


# Push and pull


def test_what_was_pushed_is_pulled_bit_for_bit(client, hub, repo):
    info = client(push, repo)
    files = hub.files(repo)
    assert {CONFIG, WEIGHTS, "README.md"} == files.keys() - {".gitattributes"}
    assert info["oid"] == hub.repos[repo].branches["main"]
    assert f"PUT /lfs/{sha256(files[WEIGHTS]).hexdigest()}" in hub.log
    assert equal(client(pull, repo), expected())
    model = build()
    assert torch.equal(client(pull_logits, repo), logits(model, build_batch(model)))


def test_the_card_on_the_hub_loads_from_the_hub(client, hub, repo):
    client(push, repo, license="mit", commit_message="Pets")
    text = hub.files(repo)["README.md"].decode()
    assert f'load_mma("{repo}"' in text
    assert "license: mit\n" in text


def test_an_old_revision_can_be_pulled_after_a_second_push(client, repo):
    first, second = client(push, repo, seed=1), client(push, repo, seed=2)
    assert first["oid"] != second["oid"]
    assert equal(client(pull, repo), expected(2))
    assert equal(client(pull, repo, revision=first["oid"]), expected(1))
    assert equal(client(pull, repo, revision=second["oid"]), expected(2))


def test_a_branch_is_made_and_leaves_main_alone(client, hub, repo):
    client(push, repo, seed=1)
    client(push, repo, seed=2, revision="bigger")
    client(push, repo, seed=3, revision="bigger")
    assert equal(client(pull, repo), expected(1))
    assert equal(client(pull, repo, revision="bigger"), expected(3))
    assert hub.repos[repo].branches.keys() == {"main", "bigger"}


def test_a_pull_request_leaves_main_alone(client, repo):
    client(push, repo, seed=1)
    info = client(push, repo, seed=2, token="hf_other", create_pr=True)
    assert info["pr_url"].endswith(f"{repo}/discussions/1")
    assert equal(client(pull, repo), expected(1))
    assert equal(client(pull, repo, revision="refs/pr/1"), expected(2))


def test_words_added_to_the_card_on_the_hub_survive_a_second_push(client, hub, repo):
    client(push, repo, license="mit")
    files = dict(hub.files(repo))
    files["README.md"] = files["README.md"].replace(b"license: mit", b"license: gpl-3.0")
    files["README.md"] += b"\nWritten on the web.\n"
    hub.repos[repo].commit("main", files)
    client(push, repo, seed=2)
    text = hub.files(repo)["README.md"].decode()
    assert text.endswith("\nWritten on the web.\n")
    assert "license: gpl-3.0\n" in text
    assert text.count("mma_adapter: end") == 1


def test_a_local_base_model_is_not_told_to_the_hub(client, hub, repo, tmp_path):
    client(push, repo, base=str(tmp_path))
    assert json.loads(hub.files(repo)[CONFIG])["base_model_name_or_path"] is None
    assert not any(str(tmp_path).encode() in data for data in hub.files(repo).values())
    client(push, repo, base=str(tmp_path), base_model="me/clip")
    assert json.loads(hub.files(repo)[CONFIG])["base_model_name_or_path"] == "me/clip"
    assert b"base_model: me/clip\n" in hub.files(repo)["README.md"]
    assert not any(str(tmp_path).encode() in data for data in hub.files(repo).values())


def test_the_base_model_comes_from_the_hub_too(client, hub, repo, tmp_path):
    build_host("clip").save_pretrained(tmp_path)
    client(push, "me/base-clip")  # makes the repository
    hub.repos["me/base-clip"].commit("main", {p.name: p.read_bytes() for p in tmp_path.iterdir()})
    client(push, repo, base="me/base-clip")
    model = build()
    assert torch.equal(client(pull_with_base, repo), logits(model, build_batch(model)))


# Refusals


def test_a_private_repository_opens_for_its_owner_only(client, hub, repo):
    client(push, repo, private=True)
    assert hub.repos[repo].private
    for token in (False, "hf_other"):
        with pytest.raises(StorageError, match=rf"{repo}.*pass token="):
            client(pull, repo, token=token)
    assert equal(client(pull, repo, token="hf_mine"), expected())


def test_a_gated_repository_says_how_to_get_in(client, hub, repo):
    client(push, repo)
    hub.repos[repo].gated = True
    with pytest.raises(StorageError, match=rf"{repo}.*gated"):
        client(pull, repo)


@pytest.mark.parametrize("action", [push, pull])
def test_a_wrong_token_is_named_as_the_reason(client, action):
    with pytest.raises(StorageError, match=r"Invalid credentials[\s\S]*token="):
        client(action, "me/fresh", token="hf_wrong")


def test_pushing_where_one_may_not_is_refused(client, hub):
    with pytest.raises(StorageError, match="somebody/pets"):
        client(push, "somebody/pets")
    assert "somebody/pets" not in hub.repos
    with pytest.raises(StorageError, match="me/nothing"):
        client(push, "me/nothing", token=False)


def test_a_missing_repository_names_the_repository(client):
    with pytest.raises(StorageError, match="no repository of that name"):
        client(pull, "me/nowhere", token="hf_mine")


def test_a_missing_revision_names_the_revision(client, repo):
    client(push, repo)
    with pytest.raises(StorageError, match=rf"{repo}.*no revision 'v9'"):
        client(pull, repo, revision="v9")


def test_a_repository_without_an_adapter_names_the_missing_file(client, hub, repo):
    client(push, repo)
    hub.repos[repo].commit("main", {"README.md": b"a model card and nothing else"})
    with pytest.raises(StorageError, match=r"no MMA adapter[\s\S]*adapter_config\.json"):
        client(pull, repo)


def test_a_damaged_file_on_the_hub_is_refused_like_one_on_disk(client, hub, repo):
    client(push, repo)
    files = hub.files(repo)
    hub.repos[repo].commit("main", {**files, WEIGHTS: files[WEIGHTS][:-100]})
    with pytest.raises(StorageError, match="damaged or cut off"):
        client(pull, repo)


# Without a network


def test_what_is_in_the_cache_loads_without_asking_the_hub(client, hub, home, repo):
    client(push, repo)
    oid = hub.repos[repo].branches["main"]
    assert equal(client(pull, repo), expected())
    asked = len(hub.log)
    assert equal(client(pull, repo, local_files_only=True), expected())
    with client_process(hub, home, offline=True) as pool:
        assert equal(pool.submit(pull, repo).result(), expected())
        assert equal(pool.submit(pull, repo, revision=oid).result(), expected())
        with pytest.raises(StorageError, match="not in the cache"):
            pool.submit(pull, "me/never-seen").result()
        with pytest.raises(StorageError, match="me/never-seen"):
            pool.submit(push, "me/never-seen").result()
    assert len(hub.log) == asked


def test_a_hub_that_is_gone_is_one_clear_error_and_the_cache_still_works(tmp_path):
    with FakeHub(TOKENS) as server, client_process(server, tmp_path, offline=False) as pool:
        pool.submit(push, "me/pets").result()
        pool.submit(pull, "me/pets").result()
        server.server.shutdown()
        server.server.server_close()
        assert equal(pool.submit(pull, "me/pets").result(), expected())
        with pytest.raises(StorageError, match="cannot be reached"):
            pool.submit(push, "me/pets").result()
        with pytest.raises(StorageError, match="cannot be reached"):
            pool.submit(pull, "me/never-seen").result()


def test_nothing_was_written_outside_the_given_cache(home):
    assert (Path(home) / "hub").is_dir()
