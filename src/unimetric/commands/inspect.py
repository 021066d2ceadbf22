"""Show the nearest neighbours of one image."""

from pathlib import Path
from typing import Annotated

from unimetric.arguments import PositiveInt, Without
from unimetric.commands.report import check_out
from unimetric.config import DeviceConfig
from unimetric.files import make_folder
from unimetric.models.source import ModelSource


def inspect(
    run: Path,
    image: Path,
    *,
    k: PositiveInt = 8,
    out: Path | None = None,
    model: Path | None = None,
    weights: str | None = None,
    device: Annotated[DeviceConfig, Without({"processes", "machines"})],
) -> int:
    """Show one image's nearest neighbours and the weights of its prompts.

    Args:
        run: Run folder, or folder that unimetric evaluate wrote.
        image: Any image.
        k: Number of neighbours.
        out: The PNG file; by default RUN/inspect/NAME.png.
        model: Run folder or model folder, if RUN holds no model.
        weights: Weight file of the backbone, if the model was trained with one. ``--model.weights FILE`` named it in
            training.
        device: Device and precision.
    """
    from unimetric.progress import log_status
    from unimetric.report.collect import read_metrics
    from unimetric.report.inspect import inspect_image, print_inspection, write_inspection

    read_metrics(run)
    out = check_out(out or run / "inspect" / f"{image.stem}.png", ".png")
    inspection = inspect_image(run, image, k, ModelSource(model, weights, device))
    print_inspection(inspection)
    make_folder(out.parent)
    write_inspection(inspection, out)
    log_status(f"The picture is in {out}.")
    return 0
