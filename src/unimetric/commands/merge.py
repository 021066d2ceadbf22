"""Make one model of several runs."""

from collections.abc import Sequence
from pathlib import Path

from unimetric.config import DeviceConfig
from unimetric.errors import UserError
from unimetric.files import check_writable, repeated
from unimetric.models.source import ModelSource


def merge(models: list[Path], *, out: Path, weights: str | None = None) -> int:
    """Make one model of several runs, by the mean of what they learned.

    The runs may differ in their seed and their images, but not in an option of the model or in the split. The result is
    as fast as one of them, and was better than each in what was tried. Measure it before you use it.

    Args:
        models: Run folders or model folders, at least two.
        out: Model folder to write.
        weights: Weight file of the backbone, if the models were trained with one. ``--model.weights FILE`` named it in
            training.
    """
    from unimetric.formats.run_folder import RunFolder
    from unimetric.models.merging import merge
    from unimetric.models.saving import CONFIG
    from unimetric.progress import log_status

    if twice := repeated(models):
        raise UserError(f"{twice} is named twice: name each model once")
    if RunFolder(out).config.exists() or (out / CONFIG).exists():
        raise UserError(f"{out} holds a model already: choose another --out")
    check_writable(out)
    _check_same_split(models)
    sources = [ModelSource(path, weights, DeviceConfig(accelerator="cpu")) for path in models]
    merged = merge([source.load() for source in sources], [str(path) for path in models])
    merged.save_pretrained(out)
    run = RunFolder(models[0])
    data = f"--config {run.config}" if run.config.is_file() else "SOURCE..."
    log_status(f"The mean of {len(models)} models is in {out}. Measure it with: unimetric evaluate {out} {data}")
    return 0


def _check_same_split(models: Sequence[Path]) -> None:
    """Check that no run has trained on the test classes of another."""
    from unimetric.formats.run_folder import RunFolder

    runs = [run for run in map(RunFolder, models) if run.config.is_file()]
    splits = [run.read_config().data for run in runs]
    for name in ("split", "split_seed", "validation_fraction", "test_datasets"):
        for run, data in zip(runs, splits, strict=True):
            first, other = getattr(splits[0], name), getattr(data, name)
            if first != other:
                raise UserError(
                    f"--data.{name} of {run.path} is {other!r}, that of {runs[0].path} is {first!r}: one may have "
                    "trained on test classes of the other; merge runs with the same split"
                )
