"""Make one model of several runs."""

from pathlib import Path

from unimetric.config import DeviceConfig
from unimetric.files import check_writable
from unimetric.models.source import ModelSource


def merge(models: list[Path], *, out: Path, weights: str | None = None) -> int:
    """Make one model of several runs, by the mean of what they learned.

    The runs differ in their seed, or in their images as well, and in no option of the model. The result is as fast as
    one of them, and usually better than each. Measure it before you use it: unimetric evaluate OUT SOURCE...

    Args:
        models: Run folders or model folders, at least two.
        out: Model folder to write.
        weights: Weights of the backbone, for models trained with --model.weights FILE.
    """
    from unimetric.models.merging import merge
    from unimetric.progress import log_status

    check_writable(out)
    sources = [ModelSource(path, weights, DeviceConfig(accelerator="cpu")) for path in models]
    merged = merge([source.load() for source in sources], [str(path) for path in models])
    merged.save_pretrained(out)
    log_status(f"The mean of {len(models)} models is in {out}. Measure it with: unimetric evaluate {out} SOURCE...")
    return 0
