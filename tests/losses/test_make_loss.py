"""Names and options as a user gives them."""

import math
import re

import pytest

from unimetric.errors import UserError
from unimetric.geometry import PoincareBall, Sphere
from unimetric.losses import LOSSES, loss_geometry, make_loss


def test_unknown_loss_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown --loss.name 'arcfase'; did you mean 'arcface'"):
        make_loss("arcfase", 3, 4)


def test_unknown_option_names_loss_and_valid_options():
    with pytest.raises(UserError, match=r"unknown option 'sclae' of loss 'cosface'; .*valid: margin, scale"):
        make_loss("cosface", 3, 4, {"sclae": 1.0})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosface", {"scale": -1.0}, "loss 'cosface': scale must be positive, got -1.0"),
        ("cosface", {"margin": math.nan}, "option margin of loss 'cosface' is nan: use a finite number"),
        ("curricularface", {"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ("curricularface", {"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0.1"),
        ("curricularface", {"per_class": 1}, "per_class of loss 'curricularface' is 1: use true or false"),
        ("curricularface", {"margin": True}, "margin of loss 'curricularface' is True: use a finite number"),
        ("arcface", {"margin": 28.6}, r"margin must be in \[0, pi\) radians, got 28.6"),
        ("arcface", {"scale": "64"}, "scale of loss 'arcface' is '64': use a finite number"),
        ("softtriple", {"centers": 2.5}, "centers of loss 'softtriple' is 2.5: use a whole number"),
        ("softtriple", {"centers": 0}, "centers must be at least 1, got 0"),
        ("margin", {"cutoff": 1.5}, "cutoff must be between 0 and nonzero_cutoff, got 1.5"),
        ("proxynca++", {"temperature": 0.0}, "temperature must be positive"),
        ("hyperbolic", {"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ("hyperbolic", {"curvature": 0.0}, "curvature must be from 1e-06 to 1e\\+06, got 0.0"),
        ("proxy-anchor", {"alpha": math.inf}, "alpha of loss 'proxy-anchor' is inf: use a finite number"),
    ],
)
def test_bad_values_name_loss_option_and_value(name, options, message):
    with pytest.raises(UserError, match=message):
        make_loss(name, 3, 4, options)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_negative_constants_are_refused(name):
    """Except Multi-Similarity's base, a cosine, no constant of any loss may be negative."""
    for option, default in LOSSES[name].options.items():
        if isinstance(default, bool) or option == "base":
            continue
        with pytest.raises(UserError, match=re.escape(f"loss '{name}': {option} must be")):
            make_loss(name, 3, 4, {option: type(default)(-1)})


@pytest.mark.parametrize("sizes", [(0, 4), (3, 0)])
def test_sizes_must_be_positive(sizes):
    with pytest.raises(UserError, match=r"loss 'triplet': .* must be at least 1, got 0"):
        make_loss("triplet", *sizes)


def test_whole_numbers_serve_for_real_ones():
    assert make_loss("cosface", 3, 4, {"scale": 30}).loss.scale == 30.0


def test_table_says_which_losses_need_several_images_per_class():
    wanting = {name for name, spec in LOSSES.items() if spec.images_per_class == 4}
    assert wanting == {"hyperbolic", "triplet", "margin", "multi-similarity"}
    assert all(spec.images_per_class is None for name, spec in LOSSES.items() if name not in wanting)


def test_a_loss_says_where_embeddings_have_to_lie():
    assert loss_geometry("hyperbolic") == PoincareBall(curvature=0.1, clip=2.3)
    assert loss_geometry("hyperbolic", {"curvature": 1, "temperature": 0.5}) == PoincareBall(curvature=1.0, clip=2.3)
    assert all(loss_geometry(name) == Sphere() for name in set(LOSSES) - {"hyperbolic"})
    with pytest.raises(UserError, match="loss 'hyperbolic': clip must be from"):
        loss_geometry("hyperbolic", {"clip": -1.0})
