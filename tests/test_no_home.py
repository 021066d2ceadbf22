"""Without a home folder: no HOME and no entry in the passwd file, as for a container's arbitrary user."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import Any, NoReturn

import pytest

from toy_runs import make_images, options_file, unimetric
from unimetric.errors import UserError
from unimetric.files import cache_folder, user_path


@pytest.fixture(autouse=True)
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any) -> NoReturn:
        raise KeyError("no such user")

    for name in ("HOME", "UNIMETRIC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", absent)
    monkeypatch.setattr(pwd, "getpwnam", absent)


def test_paths_and_the_cache_need_a_home_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for path in ("~", "~/photos", "~somebody/photos"):
        with pytest.raises(UserError, match=r"there is no such home folder; set HOME or write the path without ~"):
            user_path(path)
    assert user_path("a/~/b~") == Path("a/~/b~")
    with pytest.raises(UserError, match="set UNIMETRIC_CACHE to a folder"):
        cache_folder()
    monkeypatch.setenv("UNIMETRIC_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "~/photos", "--out", "OUT"],
        ["train", "DATA", "--out", "~/run", "--config", "OPTIONS"],
        ["train", "DATA", "--out", "OUT", "--config", "~/options.yaml"],
        ["train", "DATA", "--out", "OUT", "--config", "OPTIONS", "--data.cache", "~/cache"],
        ["train", "DATA", "--out", "OUT", "--config", "OPTIONS", "--model.weights", "~/vit.safetensors"],
        ["train", "--resume", "~/run"],
        ["extend", "~/run", "--data", "DATA"],
        ["evaluate", "~/run"],
        ["evaluate", "--ensemble", "~/run", "--out", "OUT"],
        ["embed", "~/run", "DATA", "--out", "OUT/v.npz"],
        ["embed", "~/run", "DATA", "--out", "~/v.npz"],
        ["index", "~/run", "DATA", "--db", "OUT"],
        ["index", "--db", "~/db", "--optimise"],
        ["search", "~/db", "x.png"],
        ["serve", "~/db"],
        ["export", "~/run"],
        ["prepare", "~/photos", "--out", "OUT"],
        ["prepare", "DATA", "--out", "~/cache"],
        ["report", "~/run"],
        ["compare", "~/one", "~/two"],
        ["inspect", "~/run", "x.png"],
        ["benchmark", "~/matrix.yaml", "--out", "OUT"],
        ["benchmark", "uml8-mini", "~/photos", "--out", "OUT"],
        ["datasets", "check", "~/data"],
        ["demo", "--out", "~/demo"],
        ["demo", "--config", "~/options.yaml"],
    ],
    ids=" ".join,
)
def test_every_path_of_every_command(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_images(tmp_path / "data", classes=4, images=2)
    places = {"DATA": data, "OUT": tmp_path / "out", "OPTIONS": options_file(tmp_path / "options.yaml")}
    given = [str(places.get(text, text.replace("OUT/", f"{tmp_path}/out/"))) for text in arguments]
    assert unimetric(*given) == 2
    error = capsys.readouterr().err
    assert error.startswith("unimetric: error: ")
    assert error.count("\n") == 1
    assert "home folder" in error
