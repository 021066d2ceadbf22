"""Initial head and proxies from linear discriminant analysis of the train images' frozen features.

A random head discards most of the information in the frozen features, and hundreds of steps recover it.
The discriminant directions (Fisher, 1936; Rao, 1948) are the linear map
that separates the train classes best, in closed form; they cost one pass over the train images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unimetric.errors import UserError
from unimetric.evaluation.evaluate_split import Evaluator
from unimetric.losses import place_proxies
from unimetric.models.devices import compute_dtype
from unimetric.models.embedder import Embedder
from unimetric.models.encoding import decoded_batches
from unimetric.progress import progress_bar

SHRINKAGE = 0.3
"""Share of the mean within-class variance that is added to every direction's; the best of 0.03, 0.1, 0.3 and 1 on
held-out train classes of eight domains."""


@dataclass(frozen=True)
class ClassStatistics:
    """Sums over N features of size D in C classes, of a size that does not depend on N.

    Args:
        counts: Features of every class, [C].
        sums: Their sums, float64 [C, D].
        scatter: Sum of the features' outer products, float64 [D, D].
    """

    counts: Tensor
    sums: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, classes: int, size: int) -> "ClassStatistics":
        """Return the statistics of no features."""
        float64 = torch.float64
        return cls(
            torch.zeros(classes, dtype=torch.int64),
            torch.zeros(classes, size, dtype=float64),
            torch.zeros(size, size, dtype=float64),
        )

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add features [B, D] of classes [B]."""
        features = features.double()
        self.counts.index_add_(0, labels, torch.ones_like(labels))
        self.sums.index_add_(0, labels, features)
        self.scatter.add_(features.T @ features)


@dataclass(frozen=True)
class Discriminant:
    """Linear map of features, with the mapped class means.

    Args:
        weight: [E, D], scaled like an orthogonal matrix: its squares sum to E.
        bias: [E]; it maps the mean feature to 0.
        class_means: Mapped means of the classes, [C, E]; 0 for a class without features.
    """

    weight: Tensor
    bias: Tensor
    class_means: Tensor


def linear_discriminant(statistics: ClassStatistics, size: int, shrinkage: float = SHRINKAGE) -> Discriminant:
    """Return the E directions that separate the class means best, in units of within-class deviations; E is ``size``.

    Generalised eigenvectors of the between-class covariance of the class means (every class weighs the same) and the
    within-class covariance ``S_w + shrinkage · mean(diag S_w) · I``. Shrinkage has to be above 0 where there are fewer
    features than dimensions D, and there is at least one. Where E is larger than D, the directions beyond are 0.
    """
    counts, sums = statistics.counts, statistics.sums
    present = counts > 0
    means = sums[present] / counts[present, None]  # (C', D)
    centre = sums.sum(0) / counts.sum()  # (D,)
    within = (statistics.scatter - (means.T * counts[present]) @ means) / counts.sum()
    width = len(centre)
    spread = within.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    offsets = means - centre
    between = offsets.T @ offsets / len(means)
    values, vectors = torch.linalg.eigh(within + shrinkage * spread * torch.eye(width, dtype=torch.float64))
    # Rounding may leave a variance of nothing slightly below 0.
    whitening = (vectors / values.clamp_min(1e-12 * spread).sqrt()) @ vectors.T
    directions = torch.linalg.eigh(whitening @ between @ whitening).eigenvectors.flip(1)[:, :size]  # (D, min(E, D))
    weight = torch.zeros(size, width, dtype=torch.float64)
    weight[: directions.shape[1]] = (whitening @ directions).T
    weight *= math.sqrt(size) / weight.norm()
    class_means = torch.zeros(len(counts), size, dtype=torch.float64)
    class_means[present] = offsets @ weight.T
    return Discriminant(weight, -weight @ centre, class_means)


def start_from_discriminant(
    embedder: Embedder,
    loss: nn.Module,
    paths: Sequence[Path],
    numbers: Sequence[int],
    evaluator: Evaluator,
) -> None:
    """Set the head to the discriminant of the train images' features, and the proxies to the mapped class means.

    The embedder has a head and is on the sphere; a loss without proxies has none to place. Images that cannot be read
    are skipped, and training names them. Of N ``paths``, the class numbers are ``numbers``.
    """
    head = embedder.head
    assert head is not None  # noqa: S101  # asked of the configuration
    statistics = ClassStatistics.empty(max(numbers) + 1, head.in_features)
    dtype = compute_dtype(evaluator.precision, embedder.device)
    images = (partial(evaluator.read, path) for path in paths)
    position, reason = 0, ""
    with progress_bar() as bar:
        task = bar.add_task("Reading the train images", total=len(paths), note="")
        for pixels, errors in decoded_batches(images, embedder.transform, evaluator.batch_size, skip_unreadable=True):
            readable = [position + index for index, error in enumerate(errors) if error is None]
            reason = next((error.reason for error in errors if error is not None), reason)
            if pixels:
                features = embedder.pixel_features(pixels, dtype).cpu()
                statistics.add(features, torch.tensor([numbers[index] for index in readable]))
            position += len(errors)
            bar.update(task, completed=position)
    if not int(statistics.counts.sum()):
        raise UserError(f"none of {len(paths)} train images can be read; the first is {paths[0]}: {reason}")
    if not bool(statistics.scatter.isfinite().all()):
        raise UserError("the frozen features of the train images are not finite: add --device.precision fp32")
    found = linear_discriminant(statistics, head.out_features)
    with torch.no_grad():
        head.weight.copy_(found.weight)
        head.bias.copy_(found.bias)
    place_proxies(loss, F.normalize(found.class_means, dim=1).float())
