"""Folders without numbers: the error names the command that makes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from unimetric.errors import UserError
from unimetric.report.collect import read_metrics


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        (["config.yaml"], "finish it with: unimetric train --resume"),  # killed before the first checkpoint
        (["config.yaml", "checkpoint.safetensors", "model/config.json"], "finish it with: unimetric train --resume"),
        (["config.yaml", "model/config.json"], "make it with unimetric train or unimetric evaluate"),
        (["config.json"], "measure it with: unimetric evaluate"),
        ([], "make it with unimetric train or unimetric evaluate"),
    ],
)
def test_the_remedy_for_a_folder_without_numbers(files: list[str], remedy: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{tmp_path} .*{remedy}"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "\xff", "[" * 100_000], ids=["empty", "cut off", "no UTF-8", "deep"])
def test_numbers_that_are_not_json_are_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"metrics\.json is not JSON \(.*\): write it again with"):
        read_metrics(tmp_path)
