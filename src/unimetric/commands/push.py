"""Push a trained model to a model hub."""

from pathlib import Path


def push(model: Path, name: str, *, private: bool = False, license: str | None = None, message: str = "") -> int:
    """Push a trained model to the hub: learned weights, configuration, measured numbers and a model card.

    It can then be loaded by its name wherever a model folder can. Log in first, with hf auth login or HF_TOKEN.

    Args:
        model: Run folder or model folder.
        name: OWNER/NAME on the hub, or OWNER/NAME@BRANCH. It is made if it does not exist.
        private: Make a new model private.
        license: Licence of the model for its card, such as apache-2.0.
        message: First line of the commit.
    """
    from unimetric.formats.hub import HubName
    from unimetric.models.publishing import push_model
    from unimetric.progress import log_status

    target = HubName.parse(name)
    address = push_model(model, target, private=private, license=license, message=message)
    log_status(f"The model is on the hub: {address}")
    log_status(f"Load it with {target} in place of a model folder.")
    return 0
