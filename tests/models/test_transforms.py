"""From an image to the backbone's input, against torchvision's own transforms."""

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from torchvision.transforms import v2

from properties import examples
from unimetric.data.transforms import EvaluationTransform, TrainingTransform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = v2.InterpolationMode.BICUBIC


def picture(width, height, seed=0):
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def reference(size):
    return v2.Compose(
        [
            v2.Resize(round(size * 256 / 224), interpolation=BICUBIC),
            v2.CenterCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


@pytest.mark.parametrize(
    "shape", [(300, 200), (200, 300), (256, 256), (90, 91), (10, 17), (3, 20), (1, 1), (1600, 201)]
)
@pytest.mark.parametrize("size", [224, 112, 56])
def test_evaluation_is_the_fields_resize_and_centre_crop(shape, size):
    image = picture(*shape)
    out = EvaluationTransform(size, MEAN, STD)(image)
    assert out.shape == (3, size, size)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, reference(size)(image), atol=1e-6, rtol=0)


def test_224_comes_from_256():
    """A white frame around 224 of 256 pixels is cut off to the pixel."""
    image = Image.new("RGB", (256, 256), "white")
    image.paste("black", (16, 16, 240, 240))
    out = EvaluationTransform(224, (0, 0, 0), (1, 1, 1))(image)
    assert not out.any()


@settings(max_examples=examples(60), deadline=None)
@given(
    long=st.integers(1, 2500),
    short=st.integers(1, 300),
    upright=st.booleans(),
    size=st.sampled_from([28, 84, 112, 224]),
    seed=st.integers(0, 9),
)
@example(long=2000, short=240, upright=False, size=224, seed=0)
@example(long=2400, short=10, upright=True, size=224, seed=0)
def test_every_shape_is_torchvisions_to_the_bit(long, short, upright, size, seed):
    assume(long <= 240 * short)  # the reference resizes all of it, however long
    image = picture(short, long, seed) if upright else picture(long, short, seed)
    crop = EvaluationTransform(size, MEAN, STD).crop(image)
    reference = v2.Compose([v2.Resize(round(size * 256 / 224), interpolation=BICUBIC), v2.CenterCrop(size)])
    assert torch.equal(crop, v2.functional.pil_to_tensor(reference(image)))


@pytest.mark.parametrize("shape", [(2000, 4), (4, 2001), (1, 1750)])
def test_a_sliver_is_nearly_torchvisions(shape):
    image = picture(*shape)
    crop = EvaluationTransform(224, MEAN, STD).crop(image).int()
    reference = v2.Compose([v2.Resize(256, interpolation=BICUBIC), v2.CenterCrop(224)])
    assert (crop - v2.functional.pil_to_tensor(reference(image)).int()).abs().max() <= 2


def test_a_sliver_takes_no_memory():
    """Resized whole, a million pixels in a row would be 256 x 256 million."""
    image = Image.new("RGB", (1_000_000, 1), (10, 20, 30))
    crop = EvaluationTransform(224, MEAN, STD).crop(image)
    assert crop.shape == (3, 224, 224)
    assert crop.amax(dim=(1, 2)).tolist() == crop.amin(dim=(1, 2)).tolist() == [10, 20, 30]


def train(image, seed, **options):
    return EvaluationTransform(32, MEAN, STD).normalise(TrainingTransform(32, **options)(image, seed))


@pytest.mark.parametrize("shape", [(60, 40), (1, 4000), (4000, 1), (5, 7), (1, 1)])
def test_training_is_a_function_of_the_seed(shape):
    image = picture(*shape)
    for seed in (0, 1, 2**63 - 1):
        out = train(image, seed)
        assert out.shape == (3, 32, 32)
        assert torch.isfinite(out).all()
        torch.rand(3)
        assert torch.equal(train(image, seed), out)


@pytest.mark.parametrize("shape", [(600, 400), (60, 40), (1, 400), (400, 1), (5, 7), (1, 1)])
def test_training_crops_are_those_of_pillow_to_a_few_grey_levels(shape):
    noise = np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1))
    for seed in range(20):
        found = TrainingTransform(32, crop_scale_min=0.3)(image, seed)
        torch.manual_seed(seed)
        crop = v2.RandomResizedCrop(32, scale=(0.3, 1.0), interpolation=v2.InterpolationMode.BICUBIC)(image)
        mirrored = bool(torch.rand(()) < 0.5)
        expected = torch.from_numpy(np.array(crop)).permute(2, 0, 1)
        difference = (found.int() - (expected.flip(-1) if mirrored else expected).int()).abs()
        assert difference.max() <= 3
        assert difference.float().mean() < 0.5


def test_seeds_differ():
    image = picture(60, 40)
    views = torch.stack([train(image, seed) for seed in range(10)])
    assert (torch.cdist(views.flatten(1), views.flatten(1)) + 100 * torch.eye(10)).min() > 1


def test_half_of_the_images_are_mirrored_and_none_if_not_wanted():
    """The left half black, the right half white, and the whole image as crop: a mirrored view starts white."""
    image = Image.new("RGB", (64, 64))
    image.paste("white", (32, 0, 64, 64))
    mirrored = sum(train(image, seed, crop_scale_min=1.0)[0, 16, 2] > 0 for seed in range(400))
    assert abs(mirrored - 200) < 5 * 10  # five standard deviations
    assert all(train(image, seed, crop_scale_min=1.0, horizontal_flip=False)[0, 16, 2] < 0 for seed in range(50))


@pytest.mark.parametrize("smallest", [0.2, 0.9])
def test_crops_take_at_least_the_wanted_share_of_the_area(smallest):
    """On an image whose red and green are its coordinates, a crop's extent can be read off."""
    ramp = np.zeros((200, 200, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(200)[None], np.arange(200)[:, None]
    areas = []
    for seed in range(100):
        out = TrainingTransform(32, crop_scale_min=smallest)(Image.fromarray(ramp), seed).float()
        # Centres of the first and last pixel are 31/32 of the crop's side apart.
        width, height = ((out[c].max() - out[c].min()) * 32 / 31 for c in (0, 1))
        areas.append(float(width * height) / 200**2)
    assert min(areas) > smallest - 0.05
    assert max(areas) <= 1.05
    assert min(areas) < smallest + 0.15


def test_the_callers_random_state_is_left_alone():
    image = picture(60, 40)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(image, seed=9)
    EvaluationTransform(32, MEAN, STD)(image)
    assert torch.equal(torch.rand(3), expected)


def test_accelerators_are_not_seeded(monkeypatch):
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, lambda seed: pytest.fail("the accelerator was seeded"))
    train(picture(60, 40), seed=9)


def test_the_image_is_not_changed():
    image = picture(60, 40)
    before = image.tobytes()
    EvaluationTransform(32, MEAN, STD)(image)
    train(image, seed=1)
    assert image.tobytes() == before
