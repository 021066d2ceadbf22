"""Models on a hub: a server on loopback that answers the endpoints of huggingface_hub's client."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants, utils

from hub_server import TOKEN, Hub, Repo
from toy_runs import make_images, one_thread, unimetric
from unimetric import Embedder, UserError
from unimetric.formats.hub import HubName
from unimetric.models.embedder import model_path

__all__ = ["one_thread"]

NAME = "acme/birds"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("here")


@pytest.fixture(scope="module")
def client(hub: Hub, here: Path) -> Iterator[Callable[..., tuple[int, str]]]:
    """Run a command with the hub's address and an empty cache; returns the exit code and the output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setenv("COLUMNS", "500")
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_CACHE", str(here / "hf"))
        patch.setattr(constants, "ENDPOINT", hub.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("{")[2]
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{{{template}")
        patch.chdir(here)

        def run(*arguments: object) -> tuple[int, str]:
            said = io.StringIO()
            with redirect_stderr(said), redirect_stdout(said):
                code = unimetric(*arguments)
            return code, said.getvalue()

        yield run


@pytest.fixture(scope="module")
def pushed(run: Path, client: Callable[..., tuple[int, str]]) -> Path:
    code, said = client("push", run, NAME, "--license", "apache-2.0", "--message", "the first")
    assert code == 0, said
    assert f"Load it with {NAME}" in said
    return run


def one_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("unimetric: error:")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    return lines[0]


def test_a_pushed_run_is_a_model_without_traces_of_this_machine(pushed: Path, hub: Hub) -> None:
    files = hub.repos[NAME].commits[hub.repos[NAME].names["main"]]
    model = {"config.json", "adapter.safetensors", "rotation.safetensors", "README.md", "metrics.json"}
    assert set(files) == {".gitattributes", *model}
    assert files["adapter.safetensors"] == (pushed / "model/adapter.safetensors").read_bytes()
    assert not any(str(pushed.parent).encode() in content for content in files.values())
    metrics = json.loads(files["metrics.json"])
    whole = json.loads((pushed / "metrics.json").read_text())
    assert metrics["thresholds"] == whole["thresholds"]
    assert not {"machine", "configuration", "provenance", "worst_classes"} & set(metrics)
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "unimetric"
    assert {result.dataset_name: result.metric_value for result in card.data.eval_results} == {
        **{name: round(values["recall@1"], 4) for name, values in whole["separate"].items()},
        "all datasets in one gallery": round(whole["unified"]["recall@1"], 4),
    }
    assert f'from_pretrained("{NAME}")' in card.text
    local = ModelCard((pushed / "model/README.md").read_text()).text
    count = re.compile(r"\| trained parameters \| (.+) \|")
    assert count.findall(card.text) == count.findall(local)


def test_a_name_on_the_hub_is_a_model(
    pushed: Path, client: Callable[..., tuple[int, str]], here: Path, hub: Hub
) -> None:
    images = make_images(here / "images", classes=2, images=2)
    options = ("--device.precision", "fp32", "--device.accelerator", "cpu")
    hub.requests.clear()
    for model, out in ((NAME, "hub.npz"), (pushed, "folder.npz")):
        code, said = client("embed", model, images, "--out", here / out, *options)
        assert code == 0, said
    assert sum(request == f"GET /api/models/{NAME}" for request in hub.requests) == 1
    with np.load(here / "hub.npz") as from_hub, np.load(here / "folder.npz") as from_folder:
        assert np.array_equal(from_hub["vectors"], from_folder["vectors"])
    # The measured thresholds come with the model, and a database opens with its name.
    assert client("index", f"hf:{NAME}", images, "--db", here / "d.db", *options)[0] == 0
    code, said = client("search", here / "d.db", images / "c0" / "0.png", "--model", NAME, "--json")
    assert code == 0, said
    code, said = client("export", NAME)
    assert code == 2
    assert "--out is missing" in one_line(said)


def test_a_revision_stays_what_it_was(
    pushed: Path, client: Callable[..., tuple[int, str]], here: Path, hub: Hub
) -> None:
    repo = hub.repos["acme/moving"] = Repo()
    files = dict(hub.repos[NAME].commits[hub.repos[NAME].names["main"]])
    first = repo.commit(files)
    repo.names["v1"] = first
    repo.commit({"adapter.safetensors": b"another"})
    images = make_images(here / "moving", classes=1, images=1)
    for name in ("acme/moving@v1", f"acme/moving@{first}"):
        code, said = client("embed", name, images, "--out", here / "v.npz")
        assert code == 0, said
    code, said = client("embed", "acme/moving", images, "--out", here / "v.npz")
    assert code == 2
    assert "adapter.safetensors is not the file" in one_line(said)
    code, said = client("embed", "acme/moving@v9", images, "--out", here / "v.npz")
    assert code == 2
    assert "acme/moving" in one_line(said)
    assert "no revision 'v9'" in said


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("acme/none", "there is no folder acme/none here, and no model acme/none on http"),
        ("other/secret", "no model other/secret"),
        ("other/gated", "is gated: accept its terms"),
        ("acme/other", "is not a unimetric model: it has no adapter.safetensors"),
        ("acme/a--b", "'acme/a--b' is not a valid name of a model on the hub"),
        ("hf:acme", "'hf:acme' is not a valid name of a model on the hub; write OWNER/NAME"),
        ("hf:acme/x y", "is not a valid name of a model on the hub"),
    ],
)
def test_wrong_names_are_one_line(
    name: str, expected: str, hub: Hub, client: Callable[..., tuple[int, str]], here: Path
) -> None:
    for kind in ("secret", "gated"):
        hub.repos[f"other/{kind}"] = Repo(private=kind == "secret", gated=kind == "gated")
        hub.repos[f"other/{kind}"].commit({})
    hub.repos["acme/other"] = Repo()
    hub.repos["acme/other"].commit({"config.json": b"{}", "pytorch_model.bin": b""})
    images = here / "any"
    if not images.exists():
        make_images(images, classes=1, images=1)
    code, said = client("embed", name, images, "--out", here / "v.npz")
    assert code == 2
    assert expected in one_line(said)


def test_what_exists_here_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert HubName.of_path(Path("acme/birds@v1")) == HubName("acme/birds", "v1")
    (tmp_path / "acme").mkdir()
    # A folder of this name is there, so a missing one in it is a typing error and no question to the hub.
    assert model_path(Path("acme/birds")) == Path("acme/birds")
    with pytest.raises(UserError, match=r"birds/config.json does not exist"):
        Embedder.from_pretrained("acme/birds")
    assert HubName.of_path(Path("hf:acme/birds")) == HubName("acme/birds")
    for path in ("birds", "a/b/c", "/a/b", "../birds", "~/birds", "dinov2-small"):
        assert HubName.of_path(Path(path)) is None
    with pytest.raises(UserError, match="the revision is 'v1', but birds is not a model on the hub"):
        Embedder.from_pretrained("birds", revision="v1")
    with pytest.raises(UserError, match="has a revision already"):
        Embedder.from_pretrained("other/birds@v2", revision="v1")


def test_offline_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("reset_sessions", "close_session"):  # older and newer clients
        getattr(utils, name, lambda: None)()
    with pytest.raises(UserError, match=r"cannot be reached for acme/none \(HF_HUB_OFFLINE is set\)"):
        Embedder.from_pretrained("acme/none")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("beta/birds", [], "refused access to beta/birds (403)"),
        ("birds", [], "'birds' is not a valid name of a model on the hub; write OWNER/NAME"),
        ("acme/unlicensed", ["--license", "no-such-licence"], "refused acme/unlicensed"),
    ],
)
def test_a_refused_push_is_one_line(
    name: str, options: list[str], expected: str, run: Path, hub: Hub, client: Callable[..., tuple[int, str]]
) -> None:
    code, said = client("push", run, name, *options)
    assert code == 2
    assert expected in one_line(said)
    # A refused card leaves an empty model.
    assert name not in hub.repos or set(hub.repos[name].commits[hub.repos[name].names["main"]]) == {".gitattributes"}


def test_only_sound_models_are_pushed(run: Path, client: Callable[..., tuple[int, str]], here: Path) -> None:
    (here / "damaged").mkdir()
    for file in ("config.json", "adapter.safetensors"):
        (here / "damaged" / file).write_bytes((run / "model" / file).read_bytes()[: 10**9 if "json" in file else 400])
    code, said = client("push", here / "damaged", "acme/damaged")
    assert code == 2
    assert "adapter.safetensors is not the file" in one_line(said)
    code, said = client("push", here / "nothing", "acme/nothing")
    assert code == 2
    assert "config.json does not exist" in one_line(said)


@pytest.mark.usefixtures("client")
def test_from_python_and_to_a_branch(run: Path, hub: Hub) -> None:
    embedder = Embedder.from_pretrained(run)
    address = embedder.push_to_hub("acme/python@trial", private=True)
    repo = hub.repos["acme/python"]
    assert address == f"{hub.url}/acme/python/commit/{repo.names['trial']}"
    assert Embedder.from_pretrained("acme/python", revision="trial").config() == embedder.config()
    assert repo.private
    assert set(repo.commits[repo.names["main"]]) == {".gitattributes"}


def test_without_an_answer_the_copy_in_the_cache_is_used_and_named(
    pushed: Path, hub: Hub, client: Callable[..., tuple[int, str]], here: Path
) -> None:
    images = make_images(here / "unreachable", classes=1, images=1)
    assert client("embed", NAME, images, "--out", here / "v.npz")[0] == 0
    commit = hub.repos[NAME].names["main"]
    hub.failing = 503
    try:
        code, said = client("embed", NAME, images, "--out", here / "v.npz")
        assert code == 0, said
        assert "it answers 503" in said
        assert f"using the copy of commit {commit[:12]}" in said
        code, said = client("embed", f"{NAME}@{commit}", images, "--out", here / "v.npz")
        assert code == 0, said
        assert "using the copy" not in said
        code, said = client("embed", "acme/never", images, "--out", here / "v.npz")
        assert code == 2
        assert "cannot be reached for acme/never (it answers 503)" in one_line(said)
    finally:
        hub.failing = 0
