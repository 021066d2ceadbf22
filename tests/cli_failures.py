"""Commands that have to fail in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from toy_runs import make_images, options_file, unimetric


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("data") / "a", classes=6, images=4)


@pytest.fixture
def options(tmp_path: Path) -> Path:
    return options_file(tmp_path / "options.yaml", training={"steps": 2})


class Failure:
    """Runs a command that has to fail with one line on standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str], out: Path) -> None:
        self.capsys, self.out = capsys, out

    def __call__(self, *arguments: object) -> str:
        self.capsys.readouterr()
        assert unimetric(*arguments) == 2
        captured = self.capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("unimetric: error: ")
        assert captured.err.count("\n") == 1
        assert "Traceback" not in captured.err
        assert not self.out.exists()
        return captured.err.removeprefix("unimetric: error: ").rstrip("\n")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], out: Path) -> Failure:
    return Failure(capsys, out)
