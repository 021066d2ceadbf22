"""Samplers, which choose the images of each batch, by name: one file each, and one line here."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from unimetric.config_values import complete_options
from unimetric.data.sampling.adaptive import AdaptiveSampler
from unimetric.data.sampling.base import BatchSampler, Share, TrainLabels
from unimetric.data.sampling.class_balanced import ClassBalancedSampler
from unimetric.data.sampling.dataset_balanced import DatasetBalancedSampler, TemperatureSampler
from unimetric.data.sampling.natural import NaturalSampler
from unimetric.errors import UserError, nearest_names

__all__ = ["SAMPLERS", "BatchSampler", "Share", "TrainLabels", "make_sampler", "sampler_options"]


SAMPLERS: dict[str, type[BatchSampler]] = {
    "adaptive": AdaptiveSampler,
    "class-balanced": ClassBalancedSampler,
    "dataset-balanced": DatasetBalancedSampler,
    "natural": NaturalSampler,
    "temperature": TemperatureSampler,
}


def sampler_options(name: str, options: Mapping[str, Any], loss_images_per_class: int | None = None) -> tuple[str, Any]:
    """Return the name of a sampler, ``auto`` resolved, and its complete options, defaults filled in.

    Args:
        name: A key of `SAMPLERS`, or ``auto``: ``class-balanced`` where the loss asks for several images of each
            class, else ``natural``.
        options: Its options by name.
        loss_images_per_class: Images of each class that the loss asks for in a batch; None if it asks for none.

    Raises:
        UserError: unknown sampler or option, or a value of the wrong type or range.

    >>> sampler_options("auto", {}, loss_images_per_class=4)
    ('class-balanced', ClassBalancedOptions(images_per_class=4))
    """
    if name == "auto":
        name = "natural" if loss_images_per_class is None else "class-balanced"
        if loss_images_per_class is not None:
            options = {"images_per_class": loss_images_per_class, **options}
    if name not in SAMPLERS:
        raise UserError(f"unknown --sampling.name {name!r}; {nearest_names(name, ['auto', *SAMPLERS])}")
    kind = SAMPLERS[name].options_type
    complete = kind(**complete_options(f"sampler {name}", options, asdict(kind())))
    if getattr(complete, "images_per_class", None) == 0:
        complete = replace(complete, images_per_class=loss_images_per_class or 1)
    return name, complete


def make_sampler(
    name: str,
    options: Mapping[str, Any],
    class_numbers: Sequence[int],
    class_datasets: Sequence[str] | None,
    batch_size: int,
    *,
    loss_images_per_class: int | None = None,
    seed: int = 0,
    share: Share | None = None,
) -> BatchSampler:
    """Make a sampler of train images; for name, options and ``loss_images_per_class`` see `sampler_options`.

    ``class_numbers`` has the class of each of the N train images, ``class_datasets`` the dataset of each class; None
    puts all into one. A batch is over all processes, of which this one takes its ``share``.

    Raises:
        UserError: unknown sampler or option, a value out of range, or images that cannot make such batches.
    """
    name, complete = sampler_options(name, options, loss_images_per_class)
    labels = TrainLabels(class_numbers, class_datasets)
    return SAMPLERS[name](labels, batch_size, complete, seed=seed, share=share)
