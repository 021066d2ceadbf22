"""The inference form on a CPU, in which no bit of an image's vector depends on other images or on threads."""

import os
import platform
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import Mlp
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch.nn import functional as F

from unimetric.models.inference import InferenceModel, each


class PerImageModel:
    """Wrapper of an inference form, which it takes over: each vector is computed from its image alone.

    A matrix product may add its terms in another order when its number of rows changes. Here every product is
    computed image by image; only layer norms, sums and conversions, which treat rows independently, are computed for
    several images at once. Where torch has oneDNN, weights are packed once into the processor's layout: short products
    would otherwise spend a quarter of their time on packing.
    """

    def __init__(self, model: InferenceModel) -> None:
        self.embedding_size = model.embedding_size
        self._model = model
        self._calls = OneThreadCalls()
        backbone, method = model.backbone, model.method
        blocks = backbone.vit.blocks
        tokens = backbone.vit.patch_embed.num_patches + backbone.prefix_tokens + method.prompt_count
        rows = tokens if _has_packed_products(model.dtype) else None
        with torch.no_grad():
            for index, (block, layers) in enumerate(zip(model.blocks, blocks, strict=True)):
                # The last block may compute one token only, from parts of its weights.
                one_token = model.last_for_class_token and index == len(blocks) - 1
                _divide_linear_layers(layers.attn, None if one_token else rows)
                _divide_linear_layers(layers.mlp, None if one_token else rows)
                block.divided = True
            _divide_linear_layers(method, rows)
        # With plain attention and fused MLPs, only matrix products can depend on the number of threads, which test
        # images reveal. Other attentions and activations split work among threads such that only few images differ, so
        # test images would not be reliable.
        plain = all(block.has_plain_attention and block.has_fused_mlp for block in model.blocks)
        uses_fused_attention = backbone.vit.attn_pool is not None or any(layers.attn.fused_attn for layers in blocks)
        self._test_images = partial(_noise, backbone.image_size) if plain and not uses_fused_attention else None

    def describe(self) -> str:
        """Return the precision and the device in a few words."""
        return self._model.describe()

    def embed_pixels(self, images: list[Tensor]) -> NDArray[np.float32]:
        """Return the vectors [n, E] of n images from ``EvaluationTransform.crop``, uint8 [3, S, S] each."""
        if not images:
            return np.empty((0, self.embedding_size), np.float32)
        return np.concatenate(self._calls(self._embed_pixels, images, self._test_images))

    @torch.inference_mode()
    def _embed_pixels(self, images: Sequence[Tensor]) -> NDArray[np.float32]:
        model = self._model
        normalised = model.backbone.transform.normalise(torch.stack(list(images)))
        # Disable a caller's autocast, which would change the type of the head and the prompts.
        with torch.autocast("cpu", enabled=False):
            starts = [model.start(image[None]) for image in normalised]
            tokens = model.run_blocks(torch.cat([tokens for tokens, _ in starts]), starts[0][1])
            return each(model.finish, tokens).numpy()


def _noise(side: int) -> list[Tensor]:
    """Return noise images, uint8 [3, S, S], the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8, generator=generator))


class _DividedLinear(nn.Module):
    """A linear layer for inference that multiplies image by image, with GELU or not.

    With ``rows``, the tokens per image, its weights are packed, which GELU needs.
    """

    def __init__(self, layer: nn.Linear, rows: int | None, gelu: bool = False) -> None:
        super().__init__()
        self.bias = None if layer.bias is None else layer.bias.data
        self.weight = layer.weight.data
        self._packed = rows is not None
        self._fused: tuple[Any, ...] = ("gelu", [], "none") if gelu else ("none", [], "")
        if rows is not None:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B, ..., D] to [B, ..., O]."""
        return each(self._multiply, tokens)

    def _multiply(self, tokens: Tensor) -> Tensor:
        if not self._packed:
            return F.linear(tokens, self.weight, self.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, self.weight, self.bias, *self._fused)
        return out


def _has_packed_products(dtype: torch.dtype) -> bool:
    # On other platforms torch builds oneDNN on other libraries, or not at all.
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch._C._has_mkldnn:
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _divide_linear_layers(module: nn.Module, rows: int | None) -> None:
    if type(module) is Mlp and rows is not None and type(module.fc1) is nn.Linear and _is_exact_gelu(module.act):
        module.fc1 = _DividedLinear(module.fc1, rows, gelu=True)
        module.act = nn.Identity()
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            # With a bias for queries and values only, EVA's attention reads the weight directly, without the layer.
            past = isinstance(module, EvaAttention) and name == "qkv" and module.q_bias is not None
            setattr(module, name, _DividedLinear(child, None if past else rows))
        else:
            _divide_linear_layers(child, rows)


def _is_exact_gelu(activation: object) -> bool:
    return type(activation) is nn.GELU and activation.approximate == "none"


Run = Callable[[Sequence[Tensor]], NDArray[np.float32]]
"""Function from n images to vectors [n, E]."""

_restoring = threading.Lock()


class OneThreadCalls:
    """Divide images among parallel calls of one thread each, as many as torch has threads.

    A matrix product may add its terms in another order when the number of threads changes. With one thread per call,
    no bit of the result depends on the number of threads.

    One or a few images would leave threads idle. They are computed in a single call with all threads, if the caller
    allows it and the result for test images is the same to the bit.
    """

    def __init__(self) -> None:
        self._pool: tuple[tuple[int, int], ThreadPoolExecutor] | None = None
        self._exact: dict[int, bool] = {}

    def __reduce__(self) -> "tuple[type[OneThreadCalls], tuple[()]]":
        # Threads can be neither copied nor pickled; a copy starts its own.
        return OneThreadCalls, ()

    def __call__(
        self, run: Run, images: Sequence[Tensor], test_images: Callable[[], Sequence[Tensor]] | None
    ) -> list[NDArray[np.float32]]:
        """Return the results of all calls, in the order of the images, of which there is at least one.

        The function is thread-safe, and its result for an image must not depend on the other images. Numbers of threads
        are compared on the ``test_images``; None uses one thread per call.
        """
        threads = torch.get_num_threads()
        if threads == 1:
            return [run(images)]
        if test_images and 2 * len(images) <= threads and self._threads_are_exact(run, threads, test_images):
            return [run(images)]
        size = -(-len(images) // threads)
        groups = [images[start : start + size] for start in range(0, len(images), size)]
        return list(self._workers(threads).map(run, groups))

    def _threads_are_exact(self, run: Run, threads: int, test_images: Callable[[], Sequence[Tensor]]) -> bool:
        if threads not in self._exact:
            images = test_images()
            expected = self._workers(threads).submit(run, images).result()
            self._exact[threads] = np.array_equal(run(images), expected)
        return self._exact[threads]

    def _workers(self, threads: int) -> ThreadPoolExecutor:
        # A forked process inherits the pool, but not its threads.
        key = (os.getpid(), threads)
        if self._pool is None or self._pool[0] != key:
            pool = ThreadPoolExecutor(threads, "embedding", _use_one_thread, (threads,))
            # A thread that started later would set the number for a moment while others of the program start, too.
            all_started = threading.Barrier(threads)
            list(pool.map(lambda _: all_started.wait(), range(threads)))
            self._pool = key, pool
        return self._pool[1]


def _use_one_thread(threads_elsewhere: int) -> None:
    """Make torch use one thread in the current thread, without changing other threads."""
    with _restoring:
        # Torch initialises a thread's number at its first use, which would overwrite a number set earlier.
        torch.get_num_threads()
        torch.set_num_threads(1)
        # The call above also set the number for future threads. Restore that, in a separate thread because the call
        # applies to its own thread, too.
        restoring = threading.Thread(target=torch.set_num_threads, args=(threads_elsewhere,))
        restoring.start()
        restoring.join()
