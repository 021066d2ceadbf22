"""One image, one vector: equal to the bit in every batch, at every place and with every number of threads."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from test_backbone_families import FAMILIES
from test_inference import ALL_CASES, embedder_of
from toys import toy_embedder

from unimetric.models.ensemble import Ensemble
from unimetric.models.network import learned_weights
from unimetric.models.per_image import OneThreadCalls


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pictures(count, side):
    random = np.random.default_rng(0)
    return list(torch.from_numpy(random.integers(0, 256, (count, 3, side, side), dtype=np.uint8)))


def check_one_vector(model, side, count=9, every_threads=(1, 2, 3, 4)):
    images = pictures(count, side)
    torch.set_num_threads(1)
    alone = np.concatenate([model.embed_pixels([image]) for image in images])
    assert len(np.unique(alone, axis=0)) == count
    for threads in every_threads:
        torch.set_num_threads(threads)
        for batch in (1, 2, 3, 5, count):
            found = [model.embed_pixels(images[start : start + batch]) for start in range(0, count, batch)]
            np.testing.assert_array_equal(np.concatenate(found), alone, f"{threads} threads, {batch} images at once")
        # Every place: in reverse order, each image comes to another one.
        np.testing.assert_array_equal(model.embed_pixels(images[::-1]), alone[::-1])


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", sorted(ALL_CASES))
def test_every_method_with_every_family(case, family, precision):
    embedder = embedder_of(case, family)
    check_one_vector(embedder.inference_form(precision), embedder.backbone.image_size, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    embedder = embedder_of("puma", family)
    check_one_vector(embedder.inference_form("fp32"), embedder.backbone.image_size, 5, (1, 3))


@pytest.mark.parametrize("case", sorted(ALL_CASES))
def test_every_method(case):
    embedder = embedder_of(case, "augreg")
    check_one_vector(embedder.inference_form("bf16"), embedder.backbone.image_size, 5, (1, 3))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sizes_of_real_models(precision):
    """Wide enough that torch divides every product and every sum among its threads."""
    embedder = toy_embedder(embed_dim=384, num_heads=6, image_size=112).eval()
    check_one_vector(embedder.inference_form(precision), 112, 12, (1, 4))


@pytest.mark.soak
@pytest.mark.parametrize("case", ["puma", "lora on all"])
def test_int8(case):
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    embedder = embedder_of(case, "augreg")
    check_one_vector(embedder.inference_form("int8"), 48)


def test_an_ensemble():
    ensemble = Ensemble([embedder_of("puma", "augreg"), embedder_of("lora on all", "augreg")])
    check_one_vector(ensemble.inference_form("bf16"), 48)


def test_encode_gives_an_image_its_own_vector_in_every_batch():
    embedder = toy_embedder().eval()
    random = np.random.default_rng(1)
    images = [Image.fromarray(random.integers(0, 256, (40 + n, 60, 3), dtype=np.uint8)) for n in range(17)]
    for precision in ("fp32", "bf16"):
        alone = np.concatenate([embedder.encode(image, precision=precision) for image in images])
        for batch_size in (1, 2, 7, 16, 32):
            found = embedder.encode(images, batch_size=batch_size, precision=precision)
            np.testing.assert_array_equal(found, alone)


def test_other_threads_keep_their_number_of_threads():
    torch.set_num_threads(3)
    form = toy_embedder().eval().inference_form("fp32")
    form.embed_pixels(pictures(6, 48))
    assert torch.get_num_threads() == 3
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [3]


def test_threads_that_start_right_after_a_call_have_their_number_of_threads():
    torch.set_num_threads(3)
    seen = []
    for _ in range(100):
        OneThreadCalls()(lambda images: np.zeros((len(images), 2), np.float32), [torch.zeros(1)] * 6, None)
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert set(seen) == {3}


def test_a_form_answers_many_threads_at_once():
    torch.set_num_threads(2)
    form = toy_embedder().eval().inference_form("bf16")
    images = pictures(7, 48)
    expected = form.embed_pixels(images)
    found = [None] * 6

    def ask(place):
        found[place] = np.concatenate([form.embed_pixels(images[: place + 1]), form.embed_pixels(images[place + 1 :])])

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for vectors in found:
        np.testing.assert_array_equal(vectors, expected)


def test_the_weights_of_the_model_stay_as_they_are():
    embedder = toy_embedder().eval()
    before = {name: value.clone() for name, value in embedder.state_dict().items()}
    embedder.inference_form("fp32").embed_pixels(pictures(2, 48))
    assert all(torch.equal(value, before[name]) for name, value in embedder.state_dict().items())
    assert learned_weights(embedder).keys() <= before.keys()
