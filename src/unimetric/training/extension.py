"""Extension of a trained model without forgetting: replayed images, distillation, and the old proxies.

A model that is trained further only on new classes forgets the old ones. Here every batch has as many replayed
images of old classes as images of new ones, with a penalty on the replayed ones that keeps them in place: on the
distance between old and new embedding (Hinton et al., *Distilling the Knowledge in a Neural Network*, 2015; Li and
Hoiem, *Learning without Forgetting*, ECCV 2016) and one on changed similarities (Park et al., *Relational Knowledge
Distillation*, CVPR 2019). With ``compatible`` the similarities are those of new embeddings with old ones, which is what
a search in an old index computes (Shen et al., *Towards Backward-Compatible Representation Learning*, CVPR 2020).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from unimetric.config import RunConfig
from unimetric.data.catalog import ClassIndex, Item
from unimetric.data.replay import ReplaySet, read_replay, write_replay
from unimetric.data.splits import Split
from unimetric.errors import UserError, cause
from unimetric.evaluation.evaluate_split import Evaluator
from unimetric.files import user_path
from unimetric.formats.run_folder import RunFolder, run_identity
from unimetric.geometry import Geometry, PoincareBall
from unimetric.losses import make_loss, place_proxies
from unimetric.models.devices import compute_dtype
from unimetric.models.embedder import Embedder
from unimetric.models.network import assign_weights, learned_weights
from unimetric.models.saving import read_model_config
from unimetric.models.source import ModelSource
from unimetric.progress import log_notes, log_status
from unimetric.training.checkpoint import read_tensors
from unimetric.training.tensors import independent, write_tensors

PROXIES = "proxies.safetensors"
MEAN_IMAGES = 32
"""Maximum number of images whose mean initialises a new class's proxy."""


def old_new_groups(config: RunConfig, classes: ClassIndex) -> list[str]:
    """Return the group of every class for the sampler: its dataset; in an extension, ``old`` or ``new``."""
    if config.extension.base is None:
        return [dataset for dataset, _ in classes.classes]
    known = set(read_replay(replay_folder(config.extension.base)).classes)
    return ["old" if pair in known else "new" for pair in classes.classes]


def old_classes(config: RunConfig, classes: ClassIndex) -> Tensor:
    """Return a mask of the classes of the model that is extended, bool [C]."""
    return torch.tensor([group == "old" for group in old_new_groups(config, classes)])


def replay_folder(base: str | Path) -> Path:
    """Return the replay folder of a run, or of the copy of an extended one."""
    return user_path(base) / "replay"


@dataclass
class Extension:
    """The old model, and the penalty on differences from it.

    Args:
        teacher: The old model.
        old: True for the old classes, bool [C].
        weight: Weight of the penalty; 0 for none.
        compatible: Compare new embeddings with old ones.
        dtype: Type for computing the old embeddings.
    """

    teacher: Embedder
    old: Tensor
    weight: float
    compatible: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, config: RunConfig, old: Tensor, device: torch.device) -> "Extension | None":
        """Return the configured extension on a device, or None. ``old`` is from `old_classes`."""
        options = config.extension
        if options.base is None:
            return None
        base = user_path(options.base)
        file = ModelSource(base, config.model.weights).weights_file
        teacher = Embedder.from_pretrained(base, weights=file)
        teacher.requires_grad_(False).to(device)
        dtype = compute_dtype(config.device.precision, device)
        return cls(teacher, old.to(device), options.distillation, options.compatible, dtype)

    def begin(
        self, config: RunConfig, embedder: Embedder, loss: nn.Module, train: Sequence[Item], evaluator: Evaluator
    ) -> None:
        """Copy the old weights into a new embedder and the old proxies into a new loss; set new proxies to class means.

        Raises:
            UserError: the old proxies are missing, damaged or of another loss, or a new image cannot be read at all.
        """
        base = user_path(config.extension.base or "")
        assign_weights(embedder, learned_weights(self.teacher), base / "model")
        classes = ClassIndex.of(train)
        place_proxies(loss, self._class_means(train, classes, evaluator))
        pairs, state = read_proxies(base / PROXIES)
        carry_over(config, loss, pairs, state, classes, base / PROXIES)

    def penalty(self, images: Tensor, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the penalty of a batch's replayed images, a float32 scalar; 0 if there are none.

        The images are [B, 3, S, S], their embeddings by the model in training [B, E], and the labels class numbers [B].
        """
        replayed = self.old[labels]
        if self.weight == 0 or not bool(replayed.any()):
            return embeddings.sum() * 0.0
        half = torch.autocast(images.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)
        # Not inference mode, because its tensors cannot be used in a backward pass.
        with torch.no_grad(), half, self.teacher.backbone.holding(self.dtype, trained_too=True):
            before = self.teacher(images[replayed])
        return self.weight * distillation(embeddings[replayed], before, self.teacher.geometry, self.compatible)

    def _class_means(self, train: Sequence[Item], classes: ClassIndex, evaluator: Evaluator) -> Tensor:
        """Return the mean direction of the old embeddings, [C, E], of the new classes; any direction for the others."""
        numbers = classes.numbers(train)
        taken: dict[int, list[Item]] = {}
        for item, number in zip(train, numbers, strict=True):
            if not self.old[number] and len(taken.setdefault(number, [])) < MEAN_IMAGES:
                taken[number].append(item)
        some = [item for items in taken.values() for item in items]
        embedded = replace(evaluator, strict=False).embed(self.teacher, some, "Reading the new images")
        sums = torch.zeros(len(classes), self.teacher.embedding_size)
        rows = torch.tensor(classes.numbers(embedded.items))
        sums.index_add_(0, rows, torch.from_numpy(embedded.vectors))
        # Old classes, and classes whose images cannot be read, get a placeholder direction.
        empty = sums.norm(dim=1) == 0
        sums[empty] = torch.randn(int(empty.sum()), sums.shape[1])
        return F.normalize(sums, dim=1)


def distillation(new: Tensor, old: Tensor, geometry: Geometry, compatible: bool) -> Tensor:
    """Penalty on moved embeddings: half the mean squared distance, plus the mean squared change of similarity.

    On the sphere ``mean_i (1 - x_i . o_i) + mean_{i != j} (s_ij - o_i . o_j)^2``, where ``s_ij`` is ``x_i . x_j``, or
    ``x_i . o_j`` if ``compatible``. In the Poincaré ball, hyperbolic distances take the place of chords and of
    similarities.

    Args:
        new: [B, E], with gradients.
        old: [B, E].
        geometry: The space of the embeddings.
        compatible: Use a new embedding's similarities to old ones.

    Returns:
        Float32 scalar, 0 if no embedding moved.
    """
    new, old = new.float(), old.float()
    others = old if compatible else new
    if isinstance(geometry, PoincareBall):
        moved = geometry.distances(new, old).diagonal().square().mean() / 2
        change = geometry.distances(new, others) - geometry.distances(old, old)
    else:
        # Half the squared chord: 1 - cosine without its rounding error, which is larger than it near 0.
        moved = (new - old).square().sum(dim=1).mean() / 2
        change = new @ others.T - old @ old.T
    pairs = len(new) * (len(new) - 1)
    off_diagonal = change.square().sum() - change.diagonal().square().sum()
    return moved + off_diagonal / max(pairs, 1)


def write_proxies(path: Path, state: dict[str, Tensor], classes: Sequence[tuple[str, str]]) -> None:
    """Write a loss's state with the (dataset, label) of its classes, in their order."""
    write_tensors(path, independent(state), {"classes": json.dumps(list(classes))})


def read_proxies(path: Path) -> tuple[list[tuple[str, str]], dict[str, Tensor]]:
    """Read the file of `write_proxies`; a `UserError` if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            classes = [(str(dataset), str(label)) for dataset, label in json.loads(file.metadata()["classes"])]
            return classes, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise UserError(f"{path} is missing or damaged ({cause(error)}): extend the old run again") from error


def carry_over(
    config: RunConfig,
    loss: nn.Module,
    pairs: Sequence[tuple[str, str]],
    before: dict[str, Tensor],
    classes: ClassIndex,
    origin: Path,
) -> None:
    """Copy the old classes' part of a loss's state into a loss with more classes, at the classes' new numbers."""
    carry_over_check(config, before, pairs, origin)
    number = {pair: index for index, pair in enumerate(classes.classes)}
    kept = [(old, number[pair]) for old, pair in enumerate(pairs) if pair in number]
    source, target = (torch.tensor(rows, dtype=torch.int64) for rows in zip(*kept, strict=True))
    state = {name: value.detach().cpu().clone() for name, value in loss.state_dict().items()}
    for name, axis in class_axes(config).items():
        value = before[name]
        if axis is None:
            state[name] = value
            continue
        by_class = _by_class(value, axis, len(pairs)).index_select(axis, source)
        _by_class(state[name], axis, len(classes)).index_copy_(axis, target, by_class)
    loss.load_state_dict(state)


def _by_class(value: Tensor, axis: int, classes: int) -> Tensor:
    """Return a view with an axis of the classes, followed by one of each class's proxies."""
    return value.view(*value.shape[:axis], classes, -1, *value.shape[axis + 1 :])


def carry_over_check(
    config: RunConfig, before: dict[str, Tensor], pairs: Sequence[tuple[str, str]], origin: Path
) -> None:
    """Refuse a loss's state that is not of the configured loss, with as many classes as there are pairs."""
    wanted = configured_loss(config, len(pairs)).state_dict()
    if {name: value.shape for name, value in wanted.items()} != {name: value.shape for name, value in before.items()}:
        raise UserError(
            f"{origin} holds no proxies of {len(pairs)} classes for the loss {config.loss.name}: the train classes are "
            "not those that it was trained on; put the images back as they were"
        )


def configured_loss(config: RunConfig, classes: int) -> nn.Module:
    """Return a fresh loss as configured, for a number of classes."""
    model = config.model
    return make_loss(config.loss.name, classes, model.embedding_size, config.loss.options, model.nested_sizes)


def class_axes(config: RunConfig) -> dict[str, int | None]:
    """Return the class axis of each tensor of a loss's state, or None.

    Several proxies of a class are adjacent.
    """
    two, three = (configured_loss(config, count).state_dict() for count in (2, 3))
    return {
        name: next((axis for axis, size in enumerate(value.shape) if size != three[name].shape[axis]), None)
        for name, value in two.items()
    }


def make_replay(config: RunConfig, split: Split, run: RunFolder, image_size: int, images_per_class: int) -> ReplaySet:
    """Write the replay set of a run from its train images, and log its size and the images that cannot be read."""
    folder = replay_folder(run.path)
    kept, notes = write_replay(folder, split.train, image_size, images_per_class, config.data.split_seed)
    log_notes(notes)
    log_status(
        f"The replay set {folder} holds {len(kept.items)} images of {len(kept.classes)} classes, {kept.bytes:,} bytes."
    )
    return kept


def loss_state(run: RunFolder) -> dict[str, Tensor]:
    """Return the loss's part of a run's checkpoint; a `UserError` if it is missing or damaged."""
    path = run.checkpoint
    if not path.is_file():
        raise UserError(
            f"{path} is missing: it holds the proxies, which extend needs; copy it back into the run folder"
        )
    _, tensors = read_tensors(path, "loss.")
    return {name.removeprefix("loss."): value for name, value in tensors.items()}


def same_images(config: RunConfig, split: Split, run: RunFolder) -> bool:
    """Return True if a run's checkpoint was made with these train images, in this order, and these options."""
    _, about = read_model_config(run.path)
    expected = run_identity(config, split, ClassIndex.of(split.train), about["backbone"]["fingerprint"])
    progress, _ = read_tensors(run.checkpoint, "loss.")
    return bool(progress.get("identity") == expected)
