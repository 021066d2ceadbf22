"""Models of this package inside other libraries: the vectors are those of `Embedder.encode`."""

from __future__ import annotations

import doctest
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from toy_runs import make_images, one_thread
from unimetric import Embedder, UserError
from unimetric.models.backbone import make_backbone

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    Embedder(make_backbone("test_vit", weights="random", image_size=32), "frozen").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hyperbolic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hyperbolic")
    backbone = make_backbone("test_vit", weights="random", image_size=32)
    Embedder(backbone, "linear", embedding_size=8, geometry="poincare").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(make_images(tmp_path_factory.mktemp("images"), classes=3, images=2).glob("*/*.png"))


def test_lancedb_tables_embed_images(model: Path, images: list[Path], tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb")
    from lancedb.embeddings import get_registry
    from lancedb.pydantic import LanceModel, Vector

    from unimetric.integrations import lancedb_function

    function = get_registry().get("unimetric").create(model=str(model), precision="fp32")
    assert isinstance(function, lancedb_function.UnimetricEmbeddings)
    vectors = Embedder.from_pretrained(model).encode(images, precision="fp32")

    class Picture(LanceModel):  # type: ignore[misc]
        path: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

    table = lancedb.connect(tmp_path / "db").create_table("pictures", schema=Picture)
    table.add([{"path": str(path)} for path in images])
    assert np.array_equal(np.stack(table.to_arrow()["vector"].to_pylist()).astype(np.float32), vectors)
    # The model is recorded in the table, so that a search needs nothing but the image.
    again = lancedb.connect(tmp_path / "db").open_table("pictures")
    nearest = np.argsort(-(vectors @ vectors[4]), kind="stable")[:3]
    for query in (str(images[4]), Image.open(images[4])):
        found = again.search(query).limit(3).to_list()
        assert [row["path"] for row in found] == [str(images[number]) for number in nearest]
    assert np.array_equal(function.compute_source_embeddings([images[0].read_bytes()])[0], vectors[0])
    # LanceDB wraps errors in its own.
    with pytest.raises(Exception, match=r"none\.png: file not found"):
        table.add([{"path": str(tmp_path / "none.png")}])
    assert again.count_rows() == 6


def test_mteb_runs_its_image_tasks(model: Path, images: list[Path]) -> None:
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata

    from unimetric.integrations import mteb_model
    from unimetric.integrations.mteb_model import UnimetricModel

    # The run of all examples leaves this module out, since MTEB is slow to import.
    assert doctest.testmod(mteb_model).failed == 0
    pictures = [Image.open(path).convert("RGB") for path in images]

    class Copies(AbsTaskRetrieval):  # type: ignore[misc]
        """Every query has its copy in the corpus, which has to be the first answer."""

        metadata = TaskMetadata(
            name="Copies",
            description="Copies of images",
            reference="https://example.org",
            dataset={"path": "none", "revision": "none"},
            type="Any2AnyRetrieval",
            category="i2i",
            modalities=["image"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            date=("2026-01-01", "2026-01-01"),
            domains=[],
            task_subtypes=[],
            license="cc0-1.0",
            annotations_creators="derived",
            dialect=[],
            sample_creation="found",
            bibtex_citation="",
        )

        def load_data(self, **kwargs: Any) -> None:
            data = RetrievalSplitData(
                queries=Dataset.from_dict({"id": [f"q{n}" for n in range(6)], "image": pictures}),
                corpus=Dataset.from_dict({"id": [f"d{n}" for n in range(6)], "image": pictures}),
                relevant_docs={f"q{n}": {f"d{n}": 1} for n in range(6)},
                top_ranked=None,
            )
            self.dataset = {"default": {"test": data}}
            self.data_loaded = True

    wrapped = UnimetricModel(str(model), precision="fp32", device="cpu")
    result = mteb.evaluate(wrapped, Copies(), cache=None, co2_tracker=False, show_progress_bar=False)
    (scores,) = result.task_results[0].scores["test"]
    assert scores["ndcg_at_1"] == 1
    assert result.model_name.endswith(model.name)
    encoded = wrapped.encode([{"image": pictures[:2]}, {"image": pictures[2:]}])
    assert np.array_equal(encoded, Embedder.from_pretrained(model).encode(images, precision="fp32"))
    with pytest.raises(UserError, match="a task with text: this model embeds images only"):
        wrapped.encode([{"text": ["a"]}])


def test_scikit_learn_pipelines_start_with_images(model: Path, hyperbolic: Path, images: list[Path]) -> None:
    from sklearn.base import clone
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline

    from unimetric.integrations.sklearn_transformer import ImageVectors

    labels = [path.parent.name for path in images]
    pipeline = make_pipeline(ImageVectors(str(model), precision="fp32"), KNeighborsClassifier(1))
    assert list(pipeline.fit(images, labels).predict(images)) == labels
    vectors = Embedder.from_pretrained(model).encode(images, precision="fp32")
    fresh = clone(pipeline[0])
    assert fresh.get_params() == {"model": str(model), "precision": "fp32"}
    assert np.array_equal(fresh.transform(images), vectors)
    assert np.array_equal(pickle.loads(pickle.dumps(fresh)).transform(images), vectors)
    other = Embedder.from_pretrained(hyperbolic).encode(images, precision="fp32")
    assert np.array_equal(fresh.set_params(model=str(hyperbolic)).transform(images), other)


def test_hyperbolic_vectors_are_refused_where_only_cosines_are_compared(hyperbolic: Path) -> None:
    pytest.importorskip("lancedb")
    pytest.importorskip("mteb")
    from unimetric.integrations.lancedb_function import UnimetricEmbeddings
    from unimetric.integrations.mteb_model import UnimetricModel

    for use in (lambda: UnimetricEmbeddings(model=str(hyperbolic)).ndims(), lambda: UnimetricModel(str(hyperbolic))):
        with pytest.raises(UserError, match=r"hyperbolic distance, which (LanceDB|MTEB) lacks"):
            use()
