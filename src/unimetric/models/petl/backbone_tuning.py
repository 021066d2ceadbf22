"""Methods that train the backbone's own parameters: full fine-tuning, and BitFit (Ben Zaken et al., ACL 2022)."""

from collections.abc import Callable

from unimetric.models.backbone import Backbone
from unimetric.models.petl.base import Method


class BackboneTuning(Method):
    """Training of selected backbone parameters from their pre-trained values.

    Args:
        backbone: The backbone; the selected parameters get gradients.
        chosen: Returns true for the names of parameters to train.
    """

    def __init__(self, backbone: Backbone, chosen: Callable[[str], bool]) -> None:
        super().__init__()
        parameters = {name: parameter for name, parameter in backbone.named_parameters() if chosen(name)}
        self.trained_in_backbone = tuple(parameters)
        for parameter in parameters.values():
            parameter.requires_grad_(True)


def full_fine_tuning(backbone: Backbone, options: object) -> Method:
    """Train every parameter of the backbone."""
    return BackboneTuning(backbone, lambda name: True)


def bitfit(backbone: Backbone, options: object) -> Method:
    """Train every bias of the backbone: of linear layers, norms and the patch embedding."""
    return BackboneTuning(backbone, lambda name: name.endswith("bias"))
