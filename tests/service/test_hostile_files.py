"""Hundreds of hostile and broken files: embedding, training, indexing and serving all finish, and account for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hostile import Corpus, build

from serving import start_server
from toy_runs import make_images, options_file, read_json, unimetric
from unimetric.data.images import ImageError, decode_image
from unimetric.search import SearchIndex

FP32 = ("--device.accelerator", "cpu", "--device.precision", "fp32")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    made = build(tmp_path_factory.mktemp("hostile") / "odd" / "things")
    assert len(made.files) >= 300
    return made


@pytest.fixture(scope="module")
def usable(corpus: Corpus) -> set[str]:
    """The files that can be decoded, one by one; the others are refused for a reason."""
    found = set()
    for path in corpus.files:
        try:
            decode_image(path)
        except ImageError as error:
            assert error.reason
            continue
        found.add(str(path))
    assert {str(path) for path in corpus.good} <= found
    assert not {str(path) for path in corpus.bad} & found
    return found


def test_embedding_uses_the_good_and_names_the_others(
    corpus: Corpus, usable: set[str], toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "vectors.parquet"
    assert unimetric("embed", toy_run, corpus.files[0].parent, "--out", out, *FP32) == 0
    table = pq.read_table(out).to_pydict()
    assert set(table["path"]) == usable
    assert np.isfinite(np.array(table["vector"])).all()
    said = capsys.readouterr().err.replace("\n", "")
    refused = {str(path) for path in [*corpus.files, *corpus.no_files]} - usable
    assert [path for path in refused if f"skipped {path}: ".replace("\n", "") not in said] == []
    assert f"{len(refused)} files were skipped" in said


def test_training_uses_the_good_and_counts_the_others(corpus: Corpus, usable: set[str], tmp_path: Path) -> None:
    odd = corpus.files[0].parents[1]
    make_images(tmp_path / "even", classes=3)
    options = options_file(
        tmp_path / "options.yaml", training={"epochs": 1, "batch_size": 32}, data={"split": "train-only"}
    )
    run = tmp_path / "run"
    assert unimetric("train", odd, tmp_path / "even", "--out", run, "--config", options) == 0
    metrics = read_json(run / "metrics.json")
    skipped = {entry["path"]: entry["reason"] for entry in metrics["skipped"]}
    assert all(skipped.values())
    cannot_be_opened = {str(path) for path in corpus.no_files}
    assert cannot_be_opened <= set(skipped)
    # An epoch leaves out its last, incomplete batch: what is in none of the others has not been looked at.
    refused = {str(path) for path in corpus.files} - usable
    assert set(skipped) - cannot_be_opened <= refused
    assert len(refused) - len(set(skipped) - cannot_be_opened) < 32
    assert metrics["counts"]["skipped_files"] == len(skipped)


def test_indexing_writes_the_good_and_names_the_others(
    corpus: Corpus, usable: set[str], toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--db", tmp_path / "db", "--false_match_rate", 0.1, *FP32)
    assert unimetric("index", toy_run, corpus.files[0].parent, *options) == 0
    with SearchIndex.open(tmp_path / "db") as index:
        assert index.count() == len(usable)
    said = capsys.readouterr().err
    assert f"{len(usable)} rows written" in said.replace("\n", " ")
    refused = {str(path) for path in [*corpus.files, *corpus.no_files]} - usable
    assert [path for path in refused if f"skipped {path}: " not in said] == []
    assert f"{len(refused)} files were skipped" in said.replace("\n", " ")


def test_the_service_answers_each_and_goes_on(corpus: Corpus, usable: set[str], database: Path) -> None:
    server = start_server(database)
    with server.client() as client:
        for path in corpus.files:
            file = {"image": (ascii(path.name), path.read_bytes(), "image/jpeg")}
            answer = client.post("/v1/search", files=file, data={"k": "1"})
            expected = {200} if str(path) in usable else {400, 413, 415, 422}
            if answer.status_code != 200:
                error = answer.json()["error"]
                assert error["message"].count("\n") == 0
                # A search has one image; in a catalogue the first frame is used.
                expected |= {answer.status_code} if error["code"] == "animated_image" else set()
            assert answer.status_code in expected, (path.name, answer.text)
        assert client.get("/readyz").status_code == 200
    code, said = server.stop()
    assert code == 0
    assert "Traceback" not in said
