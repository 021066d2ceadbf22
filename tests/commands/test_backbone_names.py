"""A backbone's name instead of a model folder, a folder of images instead of a database: search without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from toy_runs import make_images, one_thread, unimetric
from unimetric import Embedder, UserError
from unimetric.commands.serve import Place, place_of
from unimetric.config import DeviceConfig
from unimetric.models.embedder import model_path
from unimetric.models.source import ModelSource

__all__ = ["one_thread"]

pytest.importorskip("lancedb")
NAME = "vit_tiny_patch16_224"
CPU = DeviceConfig(accelerator="cpu", precision="fp32")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, with a random backbone under the name of one, since the hub may be out of reach."""
    from unimetric.models.backbone import make_backbone

    folder = tmp_path / "cache"
    monkeypatch.setenv("UNIMETRIC_CACHE", str(folder))
    (folder / "models" / NAME).mkdir(parents=True)
    Embedder(make_backbone(NAME, weights="random", image_size=32), "frozen").save_pretrained(folder / "models" / NAME)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_name_is_a_model(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make_images(tmp_path / "images", classes=2, images=2)
    assert model_path(Path(NAME)) == cache / "models" / NAME
    embedder = Embedder.from_pretrained(NAME)
    assert embedder.method_name == "frozen"
    assert unimetric("embed", NAME, images, "--out", "v.npz", "--device.precision", "fp32") == 0
    with np.load("v.npz") as file:
        assert np.allclose(file["vectors"], embedder.encode(file["paths"].tolist(), precision="fp32"), atol=1e-5)
    assert unimetric("index", NAME, images, "--db", "d.db", "--device.precision", "fp32") == 0
    assert "4 rows written" in capsys.readouterr().err


def test_a_folder_of_that_name_comes_first(cache: Path, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match=r"config\.json"):
        Embedder.from_pretrained(NAME)
    assert model_path(Path("runs") / NAME) == Path("runs") / NAME
    assert model_path(Path("no-such-model")) == Path("no-such-model")


def test_a_folder_of_images_has_a_database_in_the_cache(cache: Path, tmp_path: Path) -> None:
    images = make_images(tmp_path / "photos", classes=2, images=2)
    place = place_of(str(images), ModelSource(Path(NAME), device=CPU))
    assert Path(place.database).is_relative_to(cache)
    assert (place.images, place.trained) == (str(images), False)
    make_images(images / "more", classes=1, images=1)
    assert place_of(str(images), ModelSource(Path(NAME), device=CPU)) == place
    assert place_of(place.database, ModelSource(device=CPU)) == Place(place.database)
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(UserError, match="database"):
            place_of(str(nothing), ModelSource(Path(NAME), device=CPU))
