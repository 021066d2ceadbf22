"""Coverage-guided fuzzing of every parser of foreign bytes with atheris: nothing but the errors that it documents.

``python tests/fuzz_targets.py TARGET FOLDER [options of libFuzzer]`` writes first inputs into the folder and fuzzes
from them; it ends with 0, or with the input that led to another error.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["unimetric"], enable_loader_override=False):
    import unimetric.config
    import unimetric.data.sources.benchmarks.mat_files
    import unimetric.data.sources.manifest
    import unimetric.data.sources.metadata
    import unimetric.models.embedder
    import unimetric.search.conditions.parsing
    import unimetric.studies.matrix_file
    import unimetric.training.checkpoint

import numpy as np
import torch
from PIL import Image

from unimetric.data.images import ImageError, decode_image
from unimetric.errors import UserError
from unimetric.losses import make_loss
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder

Check = Callable[[bytes], object]


def condition(folder: Path) -> tuple[list[bytes], Check]:
    columns = {"price": "number", "label": "text", "in stock": "boolean", "day": "date", "taken": "time"}
    firsts = [
        b"price < 5 and label = 'it''s'",
        b"not (`in stock` or day >= date '2024-02-29') and taken < timestamp '2024-01-01 10:00:00'",
        b"label in ('a', 'b') or label like 'x%' and price is not null",
        b"price between -1 and 1e300 + 2 * 3",
    ]

    def check(content: bytes) -> None:
        unimetric.search.conditions.parsing.parse_condition(content.decode("utf-8", "surrogateescape"), columns)

    return firsts, check


def manifest(folder: Path) -> tuple[list[bytes], Check]:
    file = folder / "manifest.csv"
    (folder / "a.jpg").touch()

    def check(content: bytes) -> None:
        file.write_bytes(content)
        unimetric.data.sources.manifest.read_manifest(file)
        unimetric.data.sources.metadata.read_metadata(file)

    rows = [
        "path,label,dataset,split,price\na.jpg,x,d,train,1.5\n",
        "path\tlabel\na.jpg\tx\n",
        'path;x1;y1;x2;y2;label\n"a.jpg";1;2;3;4;y\n',
        "\ufeffimage,class\r\na.jpg,b\r\n",
    ]
    return [*(row.encode() for row in rows), rows[0].encode("utf-16")], check


def yaml(folder: Path) -> tuple[list[bytes], Check]:
    file = folder / "options.yaml"

    def check(content: bytes) -> None:
        file.write_bytes(content)
        for read in (
            lambda path: unimetric.config.run_config(unimetric.config.read_options(path), str(path)),
            unimetric.studies.matrix_file.read_matrix,
        ):
            with suppress(UserError):
                read(file)

    firsts = [
        b"data: {sources: [a, b], workers: 2}\ntraining:\n  seed: 1\n  learning_rate: 1.0e-4\n",
        b"title: x\nconfig: {training: {steps: 3}}\naxes:\n  method:\n    a: {model.method: puma}\nseeds: [0, 1]\n",
        b"a: &a [1, 2]\nb: {<<: {c: *a}, d: !!binary aGk=, e: 2020-01-02}\n",
    ]
    return firsts, check


def mat(folder: Path) -> tuple[list[bytes], Check]:
    from scipy.io import savemat

    module = unimetric.data.sources.benchmarks.mat_files
    file = folder / "a.mat"

    def check(content: bytes) -> None:
        file.write_bytes(content)
        found = module.read_mat(file, ["annotations"])["annotations"]
        module.mat_numbers(file, module.mat_column(file, found, "class"), "class", 1, 200)
        module.mat_texts(file, module.mat_column(file, found, "fname"), "name")

    firsts = []
    for compressed in (False, True):
        content = io.BytesIO()
        savemat(content, {"annotations": [{"class": 1, "fname": "a.jpg"}] * 2}, do_compression=compressed)
        firsts.append(content.getvalue())
    table = np.zeros((1, 2), [("class", "O"), ("fname", "O")])
    table["class"], table["fname"] = np.uint8(3), "b.jpg"
    content = io.BytesIO()
    savemat(content, {"annotations": table})
    return [*firsts, content.getvalue()], check


def upload(folder: Path) -> tuple[list[bytes], Check]:
    def check(content: bytes) -> None:
        image = decode_image(content, 10_000)
        assert image.mode == "RGB"

    firsts = []
    noise = np.random.default_rng(0).integers(0, 255, (9, 7, 3)).astype(np.uint8)
    for mode in ("RGB", "L", "P", "RGBA", "CMYK", "1"):
        for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
            buffer = io.BytesIO()
            try:
                Image.fromarray(noise).convert(mode).save(buffer, kind)
            except (OSError, ValueError):
                continue
            firsts.append(buffer.getvalue())
    return firsts, check


def model(folder: Path) -> tuple[list[bytes], Check]:
    """The first byte selects ``config.json``, or the weights with a right checksum."""
    import hashlib

    torch.manual_seed(0)
    options = {"adapter_bottleneck": 1, "prompts": 2, "prompt_length": 1}
    made = make_backbone("vit_tiny_patch16_224", weights="random", image_size=32)
    place = folder / "model"
    Embedder(made, "puma", options, 4).save_pretrained(place)
    config, weights = ((place / name).read_bytes() for name in ("config.json", "adapter.safetensors"))

    def same(name: str, **others: Any) -> Any:
        # Made once; a wrong name is the business of timm.
        if name != "vit_tiny_patch16_224":
            raise UserError(f"no backbone {name!r}")
        return made

    unimetric.models.embedder.make_backbone = same

    def check(content: bytes) -> None:
        about, tensors = (content[1:], weights) if content[:1] == b"c" else (config, content[1:])
        if content[:1] != b"c":
            values = json.loads(config) | {"weights_sha256": hashlib.sha256(tensors).hexdigest()}
            about = json.dumps(values).encode()
        (place / "config.json").write_bytes(about)
        (place / "adapter.safetensors").write_bytes(tensors)
        Embedder.from_pretrained(place)

    return [b"c" + config, b"w" + weights], check


def checkpoint(folder: Path) -> tuple[list[bytes], Check]:
    module = unimetric.training.checkpoint
    torch.manual_seed(0)
    embedder = Embedder(make_backbone("vit_tiny_patch16_224", weights="random", image_size=32), "linear", {}, 2)
    loss = make_loss("curricularface", 2, 2)
    learned = [one for one in [*embedder.parameters(), *loss.parameters()] if one.requires_grad]
    optimiser = torch.optim.AdamW(learned)
    file = folder / "checkpoint.safetensors"
    module._checksum = lambda *content: "same"  # a mutation would hardly come past it
    module.save_checkpoint(file, embedder, loss, optimiser, module.Progress(step=1, skipped={0: "x"}), "same")
    first = file.read_bytes()

    def check(content: bytes) -> None:
        file.write_bytes(content)
        module.saved_step(file)
        module.load_checkpoint(file, embedder, loss, optimiser, "same")

    return [first], check


TARGETS = {one.__name__: one for one in (condition, manifest, yaml, mat, upload, model, checkpoint)}


def main() -> None:
    """Fuzz one target."""
    name, folder, options = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    inputs, work = folder / "inputs", folder / "work"
    inputs.mkdir(parents=True, exist_ok=True)
    work.mkdir(exist_ok=True)
    firsts, check = TARGETS[name](work)
    for number, content in enumerate(firsts):
        (inputs / f"first-{number}").write_bytes(content)

    def one(content: bytes) -> None:
        try:
            check(content)
        except (UserError, ImageError) as error:
            assert str(error).isprintable(), repr(str(error))

    atheris.Setup([sys.argv[0], *options, str(inputs)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
