"""The model card, README.md of a model folder: description, measured scores, and usage of the model."""

from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCardData

from unimetric.models.packaged import PACKAGED

_HERE = "path/to/this/folder"


def model_card(
    config: dict[str, Any],
    trainable_parameters: int,
    metrics: dict[str, Any] | None,
    *,
    place: str = _HERE,
    license: str | None = None,
) -> str:
    """Return the card as Markdown with the hub's metadata in front.

    ``config`` is the content of the model's ``config.json``, ``metrics`` has the shape of ``metrics.json``, ``place``
    is the name or folder to load the model from, and ``license`` the licence's identifier.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(  # noqa: S701 - Markdown, in which `cell` escapes names
        loader=PackageLoader("unimetric.models"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cell": lambda text: text.replace("|", "\\|").replace("\n", " "),
        "percent": "{:.1%}".format,
    }
    geometry = config.get("geometry", {"name": "sphere"})
    measured = metrics if metrics and metrics["counts"]["queries"] else None
    return environment.get_template("card.md.j2").render(
        metadata=_metadata(config, measured, place, license),
        method=config["method"],
        backbone=config["backbone"],
        embedding_size=config["embedding_size"],
        geometry=geometry,
        sphere=geometry["name"] == "sphere",
        trainable_parameters=trainable_parameters,
        place=place,
        extension=(metrics or {}).get("extension"),
        measured=measured,
    )


def _metadata(config: dict[str, Any], measured: dict[str, Any] | None, place: str, license: str | None) -> str:
    """Return the card's metadata as YAML, in the hub's vocabulary."""
    recalls = {} if measured is None else {**measured["separate"], "all datasets in one gallery": measured["unified"]}
    results = [
        EvalResult(
            task_type="image-feature-extraction",
            task_name="Image retrieval",
            dataset_type=name,
            dataset_name=name,
            metric_type="recall@1",
            metric_name="Recall@1",
            metric_value=round(values["recall@1"], 4),
        )
        for name, values in recalls.items()
    ]
    own_name = f"{config['method']['name']} on {config['backbone']['name']}"
    data = ModelCardData(
        library_name="unimetric",
        pipeline_tag="image-feature-extraction",
        tags=["metric-learning", "image-retrieval", "embeddings", config["method"]["name"]],
        base_model=_base_model(config["backbone"]),
        license=license,
        model_name=(own_name if place == _HERE else place.rpartition("/")[2]) if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _base_model(backbone: dict[str, Any]) -> str | None:
    """Return the hub's name of a backbone whose weights come from there."""
    if backbone["weights"] != "pretrained" or backbone["name"] in PACKAGED or not timm.is_model(backbone["name"]):
        return None
    pretrained = timm.get_pretrained_cfg(backbone["name"])
    place = pretrained.hf_hub_id if pretrained else None
    return f"{place}{pretrained.architecture}.{pretrained.tag}" if place and place.endswith("/") else place
