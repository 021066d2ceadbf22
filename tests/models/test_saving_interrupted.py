"""Saving to a full disk, over an older model, or cut off anywhere."""

import errno
import os
from pathlib import Path

import pytest
import torch
from saved_models import folder, make, saved
from toys import pixels

from unimetric.errors import UserError
from unimetric.models.embedder import Embedder
from unimetric.models.saving import CARD, CONFIG, WEIGHTS

__all__ = ["folder", "saved"]


def listing(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def failing_call(function, number):
    """The function, but its nth call raises a full disk's error."""
    left = number

    def call(*args, **options):
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(*args, **options)

    return call


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_full_disk_leaves_the_old_model_as_it_was(folder, monkeypatch, number):
    before = listing(folder)
    monkeypatch.setattr(os, "fsync", failing_call(os.fsync, number))
    with pytest.raises(UserError, match="the disk is full") as caught:
        make(seed=1).save_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert listing(folder) == before
    with torch.no_grad():
        assert torch.equal(Embedder.from_pretrained(folder)(pixels(1, 32)), make()(pixels(1, 32)))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_full_disk_leaves_nothing_half_written_in_a_new_folder(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", failing_call(os.fsync, number))
    with pytest.raises(UserError, match="the disk is full"):
        make().save_pretrained(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("number", range(1, 8))
def test_cut_off_anywhere_it_is_the_old_model_or_the_new_one_or_refused(folder, monkeypatch, number):
    new = make(seed=1)
    monkeypatch.setattr(Path, "replace", failing_call(Path.replace, number))
    try:
        new.save_pretrained(folder)
    except UserError as error:
        assert "the disk is full" in str(error)
    else:
        assert number == 7
    monkeypatch.undo()
    assert sorted(path.name for path in folder.iterdir()) == sorted([CARD, WEIGHTS, CONFIG])
    try:
        loaded = Embedder.from_pretrained(folder)
    except UserError as error:
        assert "another model's" in str(error)
        return
    with torch.no_grad():
        found = loaded(pixels(1, 32))
        assert any(torch.equal(found, model(pixels(1, 32))) for model in (new, make()))


def test_saving_over_a_model_replaces_it(folder):
    new = make(seed=1)
    new.save_pretrained(folder, metrics=None)
    with torch.no_grad():
        assert torch.equal(Embedder.from_pretrained(folder)(pixels(1, 32)), new(pixels(1, 32)))


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(UserError, match=r"model: a file of that name exists"):
        make().save_pretrained(tmp_path / "model")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_a_clear_sentence(tmp_path):
    (tmp_path / "model").mkdir(mode=0o500)
    with pytest.raises(UserError, match="no permission"):
        make().save_pretrained(tmp_path / "model")
