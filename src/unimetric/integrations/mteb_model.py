"""Model for MTEB, the benchmark of embeddings: its image tasks, run with a model of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction

from unimetric.errors import UserError
from unimetric.geometry import Sphere
from unimetric.models.devices import choose_device
from unimetric.models.embedder import Embedder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


class UnimetricModel(AbsEncoder):  # type: ignore[misc]
    """Encoder of images for ``mteb.evaluate``; texts are refused.

    Args:
        model_name: Run folder, model folder, or name of a backbone or of a model on the hub.
        revision: Branch, tag or commit, for a model on the hub.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: As for `Embedder.encode`.

    Raises:
        UserError: the model cannot be loaded, or its vectors lie in the Poincaré ball, whose distance MTEB lacks.
    """

    def __init__(
        self, model_name: str, revision: str | None = None, *, device: str | None = None, precision: str = "auto"
    ) -> None:
        embedder = Embedder.from_pretrained(model_name, revision=revision)
        if not isinstance(embedder.geometry, Sphere):
            raise UserError(f"{model_name} compares by hyperbolic distance, which MTEB lacks: use unimetric evaluate")
        self.model = embedder.to(choose_device(device or "auto"))
        self._precision = precision
        parameters = sum(value.numel() for value in embedder.parameters())
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": _meta_name(model_name),
                "revision": revision or embedder.backbone.fingerprint[:12],
                "modalities": ["image"],
                "n_parameters": parameters,
                "embed_dim": embedder.embedding_size,
                "similarity_fn_name": ScoringFunction.COSINE,
                "framework": ["PyTorch"],
                "use_instructions": False,
            }
        )

    def encode(self, inputs: Iterable[dict[str, Any]], **kwargs: Any) -> NDArray[np.float32]:
        """Return the vectors of the images in batches, float32 [N, E].

        Args:
            inputs: Batches with the key ``image``, a list of PIL images.
            kwargs: The task, its split and the options of other models, which are not used.

        Raises:
            UserError: a batch has texts, sounds or videos instead.
        """
        batches = []
        for batch in inputs:
            if "image" not in batch:
                raise UserError(f"a task with {', '.join(sorted(batch))}: this model embeds images only")
            batches.append(self.model.encode(list(batch["image"]), precision=self._precision))
        return np.concatenate(batches) if batches else np.empty((0, self.model.embedding_size), np.float32)


def _meta_name(name: str) -> str:
    """Return a name of MTEB's form, ``organisation/model``.

    >>> _meta_name("runs/mine/model"), _meta_name("dinov2-small")
    ('mine/model', 'unimetric/dinov2-small')
    """
    parts = [part for part in name.partition("@")[0].split("/") if part not in ("", ".", "..")]
    return "/".join(parts[-2:]) if len(parts) > 1 else f"unimetric/{parts[0]}"
