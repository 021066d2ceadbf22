"""`Embedder.encode`: every way to give an image, in order, the same whatever the batch, and no trace left."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from toys import toy_embedder

from unimetric.errors import UserError

every_batch = pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 64])


@pytest.fixture(scope="module")
def embedder():
    return toy_embedder(options={"adapter_bottleneck": 4, "prompts": 3, "prompt_length": 2}).eval()


@pytest.fixture(scope="module")
def images():
    """Seven images of various sizes, each different."""
    random = np.random.default_rng(0)
    sizes = [(60, 80), (48, 48), (33, 21), (200, 100), (5, 7), (64, 64), (90, 50)]
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture
def files(images, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return paths


@pytest.fixture
def damaged(tmp_path):
    path = tmp_path / "damaged.jpg"
    path.write_bytes(b"\xff\xd8\xff" + bytes(50))
    return path


def same(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=3e-6, rtol=1e-5)


def test_is_the_forward_pass_of_the_transformed_images(embedder, images):
    with torch.no_grad():
        expected = embedder(torch.stack([embedder.transform(image) for image in images])).numpy()
    vectors = embedder.encode(images, precision="fp32")
    assert vectors.dtype == np.float32
    assert vectors.shape == (7, embedder.embedding_size)
    same(vectors, expected)
    assert np.abs(vectors[1:] - vectors[:-1]).max(1).min() > 1e-3  # the order is worth testing


@every_batch
def test_batch_size_and_kind_of_input_change_nothing(embedder, images, files, batch_size):
    expected = embedder.encode(images, precision="fp32")
    columns = (np.array(files, dtype=object), np.array([str(path) for path in files]))
    for given in (files, [str(path) for path in files], [np.asarray(image) for image in images], iter(files), *columns):
        same(embedder.encode(given, batch_size=batch_size, precision="fp32"), expected)
    mixed = [files[0], images[1], np.asarray(images[2]), str(files[3]), *images[4:]]
    same(embedder.encode(mixed, batch_size=batch_size, precision="fp32"), expected)


def test_a_single_image_needs_no_list(embedder, images, files):
    expected = embedder.encode(images[:1])
    for given in (images[0], files[0], str(files[0]), np.asarray(images[0])):
        assert np.array_equal(embedder.encode(given), expected)


def test_an_array_of_four_axes_is_a_list_of_images(embedder):
    stack = np.random.default_rng(2).integers(0, 256, (5, 40, 30, 3), dtype=np.uint8)
    expected = embedder.encode(list(stack), precision="fp32")
    assert len(expected) == 5
    same(embedder.encode(stack, precision="fp32", batch_size=2), expected)
    same(embedder.encode(stack[:1], precision="fp32"), expected[:1])
    assert embedder.encode(stack[:0]).shape == (0, embedder.embedding_size)
    with pytest.raises(UserError, match="shape"):
        embedder.encode([stack])


@pytest.fixture
def eight_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("eight_threads")
def test_one_opened_file_may_be_listed_twice(embedder, tmp_path):
    """Opened files are read when they are needed: two threads at once would each get a part of one."""
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(3).integers(0, 256, (1500, 1200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    expected = embedder.encode(path, precision="fp32")
    for _ in range(3):
        with Image.open(path) as opened:
            same(embedder.encode([opened] * 8, precision="fp32"), np.repeat(expected, 8, axis=0))


def test_nothing_gives_no_vectors(embedder):
    empty = embedder.encode([])
    assert empty.shape == (0, embedder.embedding_size)
    assert empty.dtype == np.float32


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA", "I;16"])
def test_other_modes_are_what_their_conversion_to_rgb_is(embedder, mode):
    grey = Image.fromarray(np.random.default_rng(1).integers(0, 2, (50, 60), dtype=np.uint8) * 255)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode == "RGBA":
        image = grey.convert("RGBA")
    else:
        image = grey.convert(mode)
    assert image.mode == mode
    same(embedder.encode(image, precision="fp32"), embedder.encode(grey.convert("RGB"), precision="fp32"))


def test_bf16_is_near_fp32_and_auto_is_one_of_them(embedder, images):
    exact = embedder.encode(images, precision="fp32")
    near = embedder.encode(images, precision="bf16")
    assert not np.array_equal(near, exact)
    assert (near * exact).sum(1).min() > 0.99
    auto = embedder.encode(images)
    assert np.array_equal(auto, near) or np.array_equal(auto, exact)


@pytest.mark.parametrize("precision", ["fp16", "BF16", "", "32"])
def test_an_unknown_precision_is_refused(embedder, images, precision):
    with pytest.raises(UserError, match=r"precision is .* valid: auto, bf16, fp32"):
        embedder.encode(images, precision=precision)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_of_nothing_is_refused(embedder, images, batch_size):
    with pytest.raises(UserError, match=f"batch_size is {batch_size}"):
        embedder.encode(images, batch_size=batch_size)


@every_batch
def test_an_unreadable_file_is_named(embedder, files, damaged, batch_size):
    with pytest.raises(UserError, match=r"damaged\.jpg") as caught:
        embedder.encode([*files[:4], damaged, *files[4:]], batch_size=batch_size)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"nowhere\.png: file not found"):
        embedder.encode([damaged.with_name("nowhere.png"), damaged])


@every_batch
def test_an_unreadable_image_without_a_name_is_numbered(embedder, images, files, batch_size):
    content = files[0].read_bytes()
    files[0].write_bytes(content[: len(content) // 2])
    with Image.open(files[0]) as cut_off, pytest.raises(UserError, match=r"images\[5\]: truncated"):
        embedder.encode([*images[:5], cut_off, cut_off], batch_size=batch_size)


@pytest.mark.parametrize("wrong", [3, None, b"bytes", ["nested"]])
def test_what_is_no_image_is_refused_by_its_type(embedder, images, wrong):
    with pytest.raises(UserError, match=type(wrong).__name__):
        embedder.encode([*images, wrong])


@every_batch
def test_unreadable_images_can_be_skipped(embedder, files, damaged, batch_size):
    missing = damaged.with_name("nowhere.png")
    given = [damaged, files[0], missing, *files[1:3], damaged]
    batches = list(embedder.encode_batches(given, batch_size=batch_size, precision="fp32", skip_unreadable=True))
    errors = [error for _, batch in batches for error in batch]
    assert [error and error.path for error in errors] == [damaged, None, missing, None, None, damaged]
    for vectors, batch in batches:
        assert vectors.shape == (sum(error is None for error in batch), embedder.embedding_size)
    same(np.concatenate([vectors for vectors, _ in batches]), embedder.encode(files[:3], precision="fp32"))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_model_is_left_as_it_was(embedder, files, damaged, training, precision):
    twin = toy_embedder(options={"adapter_bottleneck": 4, "prompts": 3, "prompt_length": 2}).train(training)
    same(twin.encode(files, precision="fp32"), embedder.encode(files, precision="fp32"))  # no adapter was dropped
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    listed = sorted(files[0].parent.iterdir())

    def check():
        assert twin.training == training
        for name, value in twin.state_dict().items():
            assert value.dtype == before[name].dtype
            assert torch.equal(value, before[name])
        assert all(p.requires_grad != name.startswith("backbone.") for name, p in twin.named_parameters())

    twin.encode(files, precision=precision)
    check()
    with pytest.raises(UserError):
        twin.encode([*files, damaged], precision=precision)
    check()
    abandoned = twin.encode_batches(files, batch_size=2, precision=precision)
    next(abandoned)
    check()  # between batches too: the caller may use the model
    del abandoned
    one, other = (twin.encode_batches(files, batch_size=3, precision=precision) for _ in range(2))
    for (vectors, _), (twins, _) in zip(one, other, strict=True):
        assert np.array_equal(vectors, twins)
    check()
    assert sorted(files[0].parent.iterdir()) == listed


def test_images_are_taken_as_they_are_needed(embedder, images):
    taken = []

    def source():
        for index in range(1000):
            taken.append(index)
            yield images[index % 7]

    batches = embedder.encode_batches(source(), batch_size=2)
    next(batches)
    assert len(taken) <= 6


def test_threads_get_what_one_alone_gets(images):
    """A service answers from several threads; one's end must not put the others' adapters into training mode."""
    embedder = toy_embedder(options={"adapter_bottleneck": 4, "prompts": 3, "prompt_length": 2}).train()
    expected = embedder.encode(images, precision="bf16", batch_size=2)
    results = [None] * 4

    def work(index):
        for _ in range(5):
            results[index] = embedder.encode(images, precision="bf16", batch_size=2)
            if not np.array_equal(results[index], expected):
                return

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(result, expected) for result in results)
    assert all(parameter.dtype == torch.float32 for parameter in embedder.parameters())
    assert embedder.training
