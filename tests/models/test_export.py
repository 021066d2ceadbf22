"""An exported file computes what the model computes, for any batch; one that does not is never written."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_inference import embedder_of
from toys import pixels, shake, toy_backbone

from unimetric.errors import UserError
from unimetric.geometry import PoincareBall
from unimetric.models import onnx_export
from unimetric.models.embedder import Embedder
from unimetric.models.ensemble import Ensemble
from unimetric.models.export import export_model
from unimetric.models.saving import model_fingerprint

EXAMPLE = Path(__file__).parents[2] / "docs/export.md"


def needs(kind):
    if kind == "onnx":
        pytest.importorskip("onnxscript", reason="the extra `export` is not installed")


def noise(count, size):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def runner(path):
    """A function from images to vectors, and the metadata."""
    if path.suffix == ".pt2":
        files = {"metadata.json": ""}
        module = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=files).module()
        return (lambda images: module(images).detach().numpy()), json.loads(files["metadata.json"])
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    return (lambda images: session.run(None, {"images": images.numpy()})[0]), about


def hyperbolic(seed):
    torch.manual_seed(seed)
    backbone = toy_backbone(embed_dim=48, num_heads=3)
    embedder = Embedder(backbone, "puma", {"adapter_bottleneck": 4, "prompts": 3}, 16, PoincareBall(0.3, 1.7)).eval()
    shake(embedder)
    return embedder


def exported(model, tmp_path, kind):
    needs(kind)
    path = tmp_path / f"model.{'onnx' if kind == 'onnx' else 'pt2'}"
    difference = export_model(model, path, kind, noise(19, model.transform.image_size))
    assert 0 <= difference < 1e-5
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    return about_checked(model, path)


def about_checked(model, path):
    """The metadata of a file, after a comparison of its vectors with the model's."""
    size = model.transform.image_size
    run, about = runner(path)
    for count in (1, 2, 7):
        images = pixels(count, size, seed=count)
        with torch.no_grad():
            np.testing.assert_allclose(run(images), model(images).numpy(), atol=2e-5)
    return about


@pytest.fixture(scope="module")
def onnx_folder(tmp_path_factory):
    """The exported file of a small PUMA, and what lay beside it before."""
    needs("onnx")
    folder = tmp_path_factory.mktemp("onnx")
    for name in (".model.onnx.a1b2c3d4", ".model.onnx.bak", ".other.onnx.a1b2c3d4"):
        (folder / name).touch()
    assert 0 <= export_model(embedder_of("puma", "augreg"), folder / "model.onnx", "onnx", noise(19, 48)) < 1e-5
    return folder


@pytest.mark.parametrize(
    ("case", "family", "kind"),
    [
        ("puma", "augreg", None),
        ("lora on all", "dinov2 with registers", "torch"),
        pytest.param("vpt-deep", "eva02 with rope", "onnx", marks=pytest.mark.soak),
        pytest.param("adaptformer", "dinov2 with LayerScale", "torch", marks=pytest.mark.soak),
        pytest.param("puma", "siglip, map pooling, no class token", "torch", marks=pytest.mark.soak),
        pytest.param("puma", "dinov3 with rope and registers", "torch", marks=pytest.mark.soak),
        pytest.param("vpt-deep", "perception encoder", "torch", marks=pytest.mark.soak),
    ],
)
def test_methods_and_families(case, family, kind, onnx_folder, tmp_path):
    embedder = embedder_of(case, family)
    about = exported(embedder, tmp_path, kind) if kind else about_checked(embedder, onnx_folder / "model.onnx")
    assert about["fingerprint"] == model_fingerprint(embedder.config())
    assert about["image_size"] == embedder.backbone.image_size
    assert about["mean"] == list(embedder.backbone.mean)
    assert about["std"] == list(embedder.backbone.std)
    assert about["embedding_size"] == embedder.embedding_size
    assert about["geometry"] == {"name": "sphere"}


@pytest.mark.parametrize("kind", ["torch", pytest.param("onnx", marks=pytest.mark.soak)])
def test_an_ensemble_in_the_ball(kind, tmp_path):
    members = [hyperbolic(1), hyperbolic(2)]
    about = exported(Ensemble(members), tmp_path, kind)
    assert about["geometry"] == {"name": "poincare", "curvature": 0.3, "clip": 1.7}
    assert about["fingerprint"] == "+".join(model_fingerprint(member.config()) for member in members)


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_what_computes_something_else_is_not_written(factor, tmp_path, monkeypatch):
    def wrong(model, precision):
        form = original(model, precision)
        form.head.weight.data *= factor
        form.head.weight.data[0] *= factor
        return form

    original = onnx_export.fuse
    monkeypatch.setattr(onnx_export, "fuse", wrong)
    (tmp_path / "model.pt2").write_bytes(b"as it was")
    with pytest.raises(UserError, match=r"model\.pt2: not written, because its vectors differ"):
        export_model(embedder_of("puma", "augreg"), tmp_path / "model.pt2", "torch", noise(3, 48))
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("model.pt2", b"as it was")]


def test_no_path_of_this_machine_is_inside_and_no_leftover_beside(onnx_folder):
    # A process that was killed left the first one.
    left = [".model.onnx.bak", ".other.onnx.a1b2c3d4", "model.onnx"]
    assert sorted(path.name for path in onnx_folder.iterdir()) == left
    content = (onnx_folder / "model.onnx").read_bytes()
    assert b"embeddings" in content
    # As it stands in a traceback; three letters alone might be weights.
    assert b'.py", line' not in content
    assert str(Path(onnx_export.__file__).parent).encode() not in content


def test_too_large_for_onnx():
    needs("onnx")
    with pytest.raises(UserError, match="a single ONNX file holds at most 2 GiB: use --format torch"):
        onnx_export.onnx_graph([embedder_of("linear", "augreg")], largest=1000)


def test_the_example_of_the_documentation_runs_without_torch(onnx_folder, tmp_path):
    embedder = embedder_of("puma", "augreg")
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path, size in zip(paths, [(60, 90), (131, 57), (48, 48), (300, 55)], strict=True):
        small = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(path)
    _, _, rest = EXAMPLE.read_text(encoding="utf-8").partition("```python\n")
    example = rest.partition("```")[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    forbidden = "import sys\nsys.modules |= dict.fromkeys(['torch', 'torchvision', 'timm', 'unimetric'])\n"
    (tmp_path / "example.py").write_text(forbidden + example)
    subprocess.run(
        [sys.executable, "example.py", onnx_folder / "model.onnx", *(path.name for path in paths)],
        cwd=tmp_path,
        check=True,
    )
    found = np.load(tmp_path / "embeddings.npy")
    np.testing.assert_allclose(found, embedder.encode(paths, precision="fp32"), atol=2e-5)
