"""Methods that train the backbone's own parameters: full fine-tuning, and BitFit (Ben Zaken et al., ACL 2022)."""

from unimetric.models.backbone import Backbone
from unimetric.models.petl.base import Method


class BackboneTuning(Method):
    """Training of backbone parameters from their pre-trained values.

    Args:
        backbone: The backbone; the parameters get gradients.
        ending: End of the names of the parameters to train; empty for all.
    """

    def __init__(self, backbone: Backbone, ending: str = "") -> None:
        super().__init__()
        parameters = {name: value for name, value in backbone.named_parameters() if name.endswith(ending)}
        self.trained_in_backbone = tuple(parameters)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
