"""Devices and precisions by name: an unknown or absent one is refused, never replaced."""

import pytest
import torch

from unimetric.errors import UserError
from unimetric.models import devices
from unimetric.models.devices import choose_device, choose_precision, compute_dtype

CPU = torch.device("cpu")


@pytest.fixture
def only_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize("name", ["cuda", "mps", "tpu", "", "cuda:0"])
def test_an_accelerator_that_is_not_there_is_refused(only_cpu, name):
    with pytest.raises(UserError, match=f"'{name}': not usable on this machine; usable: auto, cpu"):
        choose_device(name)


def test_auto_takes_the_fastest_there_is(monkeypatch, only_cpu):
    assert choose_device() == choose_device("cpu") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"


@pytest.mark.parametrize("there", [True, False])
def test_auto_precision_follows_the_processor(monkeypatch, there):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": there, "avx2": True}, raising=False)
    assert choose_precision("auto", CPU) == ("bf16" if there else "fp32")
    assert compute_dtype("auto", CPU) == (torch.bfloat16 if there else torch.float32)
    # Named ones are taken at their word.
    assert compute_dtype("bf16", CPU) == torch.bfloat16
    assert compute_dtype("fp32", CPU) == torch.float32


@pytest.mark.parametrize("name", ["fp16", "bfloat16", "BF16", "16", ""])
def test_an_unknown_precision_is_refused_not_taken_for_fp32(name):
    for choose in (choose_precision, compute_dtype):
        with pytest.raises(UserError, match=rf"precision is '{name}'.* valid: auto, bf16, fp32, int8"):
            choose(name, CPU)


def test_int8_is_for_embedding_on_a_cpu():
    assert choose_precision("int8", CPU) == "int8"
    with pytest.raises(UserError, match="computed on a CPU alone, not on cuda: add --device"):
        choose_precision("int8", torch.device("cuda"))
    with pytest.raises(UserError, match="'int8', which is for embedding alone: train with auto, bf16 or fp32"):
        compute_dtype("int8", CPU)


@pytest.mark.parametrize(
    ("machine", "present", "overflows"),
    [
        ("x86_64", "avx512_vnni", False),
        ("AMD64", "avx_vnni", False),
        ("x86_64", "avx2", True),
        ("aarch64", "asimd", False),
    ],
)
def test_which_processors_overflow_in_int8(monkeypatch, machine, present, overflows):
    monkeypatch.setattr(devices.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {present: True, "other": False}, raising=False)
    assert devices.overflows_in_int8() is overflows


def test_bf16_is_never_automatic_where_it_would_be_emulated():
    assert choose_precision("auto", torch.device("mps")) == "fp32"
