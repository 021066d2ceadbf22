"""Embed images with an ONNX file of `unimetric export`, by onnxruntime and without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unimetric.cpu import available_cores
from unimetric.data.batches import ImageLike, listed_images, prepared_batches
from unimetric.data.cropping import evaluation_crop
from unimetric.errors import UserError
from unimetric.files import explain_os_error, user_path

_FORMAT = 1


def default_name(precision: str, size: int | None = None) -> str:
    """Return the name of an exported file without its extension.

    >>> default_name("fp32"), default_name("int8", 32)
    ('model', 'model.32.int8')
    """
    return ".".join(["model", *([] if size is None else [str(size)]), *([] if precision == "fp32" else [precision])])


class OnnxNetwork:
    """A network of `unimetric.models.export`, run by onnxruntime in threads, with one image each.

    It gets its images one by one, in several threads: the order in which a product adds its terms, and the rounding
    scale of int8, depend on the whole input of a call, and a vector must not depend on other images in the batch.
    """

    def __init__(self, session: Any, threads: int = 1) -> None:
        self._session, self._threads = session, threads

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return vectors, float32 [B, E], for normalised images, float32 [B, 3, S, S] with B at least 1."""
        if self._threads == 1 or len(images) == 1:
            return np.concatenate([self._run(image[None]) for image in images])
        with ThreadPoolExecutor(self._threads) as pool:
            return np.concatenate(list(pool.map(self._run, np.split(images, len(images)))))

    def _run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        (vectors,) = self._session.run(["embeddings"], {"images": images})
        return vectors  # type: ignore[no-any-return]


def open_session(source: str | bytes) -> Any:
    """Open an `onnxruntime.InferenceSession` on the CPU, with one thread a call, from a file's name or its content."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # More threads would divide products, and add their terms in another order on another machine.
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class ExportedEmbedder:
    """A model exported as one ONNX file, with the vectors of `Embedder.encode` in float32 or int8, on the CPU.

    Attributes:
        fingerprint: SHA-256 of the model that was exported, see `model_fingerprint`.
        compatible_with: Fingerprints of other models whose vectors this model's queries may search.
        embedding_size: E.
        image_size: S.
        precision: Precision of its products, ``fp32`` or ``int8``.
        encoded_in: Runtime, precision and device in a few words.

    Raises:
        UserError: onnxruntime is missing, the file cannot be read, or it was not written by ``unimetric export``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path)
        self._threads = available_cores()
        session = _session(self.path)
        about = _metadata(self.path, session)
        self.precision: str = about.get("precision", "fp32")
        self.encoded_in = f"onnxruntime, {self.precision}, cpu"
        self._network = OnnxNetwork(session, self._threads)
        self.fingerprint: str = about["fingerprint"]
        self.compatible_with: tuple[str, ...] = tuple(about.get("compatible_with", ()))
        self.embedding_size: int = about["embedding_size"]
        self.image_size: int = about["image_size"]
        self._shorter_side: int = about["resize_shorter_side"]
        self._mean, self._std = (np.asarray(about[name], np.float32)[:, None, None] for name in ("mean", "std"))

    def encode(self, images: Sequence[ImageLike] | ImageLike, *, batch_size: int = 32) -> NDArray[np.float32]:
        """Embed images, or a single one, as `Embedder.encode` does: float32 [N, E], in their order.

        Raises:
            UserError: a file that cannot be read, or an array that is not an image.
        """
        vectors = [np.empty((0, self.embedding_size), np.float32)]
        for pixels, _ in prepared_batches(listed_images(images), self.crop, batch_size, self._threads):
            vectors.append(self._network(self.normalise(np.stack(pixels))))
        return np.concatenate(vectors)

    def crop(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the pixels of an RGB image, uint8 [3, S, S]."""
        return np.asarray(evaluation_crop(image, self.image_size, self._shorter_side)).transpose(2, 0, 1)

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the network's input, float32, for pixels, uint8 [..., 3, S, S], in the same shape."""
        # Equal to torchvision's to the bit, because int8 turns a difference in the last digit into one in the fourth.
        return (pixels.astype(np.float32) * np.float32(1 / 255) - self._mean) / self._std


def _session(path: Path) -> Any:
    try:
        import onnxruntime  # noqa: F401 - report a missing package before a missing file
    except ModuleNotFoundError as error:
        raise UserError(f"{path} needs the package {error.name}, which is missing: pip install onnxruntime") from error
    with explain_os_error(path, "read"):
        # Open the file first, for an ordinary OSError instead of onnxruntime's own error.
        path.open("rb").close()
    try:
        return open_session(str(path))
    except Exception as error:
        raise UserError(f"{path} is damaged, or no ONNX file; export the model again with: unimetric export") from error


def _metadata(path: Path, session: Any) -> dict[str, Any]:
    """Return the metadata of the file, see `unimetric.models.export.metadata`."""
    try:
        about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
        if about["format"] != _FORMAT:
            raise UserError(
                f"{path} has format {about['format']!r}, this version of unimetric reads {_FORMAT}: update unimetric, "
                "or export the model again"
            )
        _check(about, session)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise UserError(f"{path} was not written by unimetric export: name the file that it wrote") from error
    return about


def _check(about: dict[str, Any], session: Any) -> None:
    """Check that the network's inputs and outputs match the metadata; any error means that they do not."""
    size, side = about["image_size"], about["resize_shorter_side"]
    scales = [float(value) for name in ("mean", "std") for value in about[name]]
    takes = [(part.name, part.shape[1:]) for part in session.get_inputs()]
    gives = [(part.name, part.shape[1:]) for part in session.get_outputs()]
    if (
        takes != [("images", [3, size, size])]
        or gives != [("embeddings", [about["embedding_size"]])]
        or about["interpolation"] != "bicubic"
        or not size <= side <= 2 * size
        or len(scales) != 6
        or not isinstance(about["fingerprint"], str)
        or about.get("precision", "fp32") not in ("fp32", "int8")
    ):
        raise ValueError("metadata and network do not match")
