"""The chunked sum over negatives against the whole matrix of cosines, values and gradients, in double precision."""

import pytest
import torch
import torch.nn.functional as F

from unimetric.losses import class_chunks
from unimetric.losses.angular import add_angular_margin
from unimetric.losses.class_chunks import target_and_negatives
from unimetric.losses.curricularface import CurricularFace, curricular_logits


def parts(batch=7, classes=600, size=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(batch, size, generator=generator, dtype=torch.float64)
    proxies = torch.randn(classes, size, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (batch,), generator=generator)
    labels[: min(3, batch)] = torch.tensor([0, classes - 1, 0])[: min(3, batch)]
    return embeddings, proxies, labels, torch.rand(batch, generator=generator, dtype=torch.float64)


def whole(embeddings, proxies, labels, own_t, scale):
    cosines = F.normalize(embeddings) @ F.normalize(proxies).T
    t = torch.zeros(len(proxies), dtype=torch.float64)
    logits = torch.stack(
        [
            curricular_logits(row[None], y[None], t.index_fill(0, y, own), 0.3)[0]
            for row, y, own in zip(cosines, labels, own_t.tolist(), strict=True)
        ]
    )
    return F.cross_entropy(scale * logits, labels)


def chunked(embeddings, proxies, labels, own_t, scale):
    directions = F.normalize(embeddings)
    with torch.no_grad():
        threshold = add_angular_margin((directions * F.normalize(proxies[labels])).sum(1), 0.3)
    target, negatives = target_and_negatives(directions, proxies, labels, threshold, own_t, scale)
    return F.softplus(negatives - scale * add_angular_margin(target, 0.3), threshold=700).mean()


@pytest.mark.parametrize("classes", [1, 2, 256, 257, 600])
@pytest.mark.parametrize("scale", [1.0, 32.0, 500.0])
def test_value_and_gradients_are_those_of_the_whole_matrix(monkeypatch, classes, scale):
    """Three chunks of 256 classes at most; targets in the first and the last; a scale whose exponentials overflow."""
    monkeypatch.setattr(class_chunks, "_CHUNK_ELEMENTS", 1)
    embeddings, proxies, labels, own_t = parts(classes=classes)
    results = []
    for form in (whole, chunked):
        leaves = [embeddings.clone().requires_grad_(), proxies.clone().requires_grad_()]
        value = form(*leaves, labels, own_t, scale)
        results.append([value.detach(), *torch.autograd.grad(3 * value, leaves)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_gradcheck_with_hard_and_easy_negatives(monkeypatch):
    monkeypatch.setattr(class_chunks, "_CHUNK_ELEMENTS", 1)
    embeddings, proxies, labels, own_t = parts(batch=4, classes=260, size=3, seed=1)
    directions = F.normalize(embeddings)
    threshold = torch.full((4,), 0.2001, dtype=torch.float64)
    cosines = directions @ F.normalize(proxies).T
    assert (cosines > 0.2001).any() and (cosines < 0.2001).any()
    assert torch.autograd.gradcheck(
        lambda x, w: target_and_negatives(x, w, labels, threshold, own_t, 8.0),
        (directions.requires_grad_(), proxies.requires_grad_()),
    )


def test_a_proxy_of_length_zero_has_a_finite_gradient():
    loss = CurricularFace(4, 3)
    with torch.no_grad():
        loss.proxies[2] = 0
    loss(torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])).backward()
    assert torch.isfinite(loss.proxies.grad).all()


def test_no_matrix_of_batch_by_classes_is_made(monkeypatch):
    """Largest storage that any operation of forward and backward returns: the proxies' own size, nothing more."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return out

    monkeypatch.setattr(class_chunks, "_CHUNK_ELEMENTS", 2**12)
    classes, batch, size = 4000, 64, 2
    loss = CurricularFace(classes, size)
    embeddings = torch.randn(batch, size, requires_grad=True)
    with Largest() as largest:
        loss(embeddings, torch.randint(classes, (batch,))).backward()
    assert largest.elements <= max(classes * size, batch * 256)
