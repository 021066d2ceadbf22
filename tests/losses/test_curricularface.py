"""CurricularFace against loops written from the formula, in double precision."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from unimetric.losses.angular import add_angular_margin
from unimetric.losses.curricularface import CurricularFace
from unimetric.losses.negatives import targets_and_negatives


def curricular_logits(cosines, labels, t, margin):
    """Logits [B, C] before scaling, all at once, as autograd differentiates them."""
    columns = labels.unsqueeze(1)
    phi = add_angular_margin(cosines.gather(1, columns), margin)
    own_t = t[labels].unsqueeze(1) if t.ndim else t
    logits = torch.where(cosines > phi, cosines * (own_t + cosines), cosines)
    return logits.scatter(1, columns, phi)


def oracle_phi(cosine, margin):
    if cosine > math.cos(math.pi - margin):
        return math.cos(math.acos(cosine) + margin)
    return cosine - math.sin(math.pi - margin) * margin


def oracle_step(embeddings, labels, proxies, t, margin, scale, momentum, update_first):
    """One training step in float64: (loss, new t). ``t`` is a number, or an array with one per class."""
    x = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    w = proxies / np.linalg.norm(proxies, axis=1, keepdims=True)
    cosines = np.clip(x @ w.T, -1, 1)
    targets = [cosines[i, y] for i, y in enumerate(labels)]
    per_class = np.ndim(t) == 1
    new_t = np.array(t, dtype=float)
    if per_class:
        for c in set(labels):
            mean = np.mean([targets[i] for i, y in enumerate(labels) if y == c])
            new_t[c] = momentum * new_t[c] + (1 - momentum) * mean
    else:
        new_t = momentum * new_t + (1 - momentum) * np.mean(targets)
    losses = []
    used_t = new_t if update_first else t
    for i, y in enumerate(labels):
        phi = oracle_phi(targets[i], margin)
        own_t = used_t[y] if per_class else used_t
        logits = []
        for j, c in enumerate(cosines[i]):
            if j == y:
                logits.append(phi)
            else:
                logits.append(c if phi >= c else c * (own_t + c))
        logits = scale * np.array(logits)
        losses.append(np.log(np.sum(np.exp(logits - logits.max()))) + logits.max() - logits[y])
    return float(np.mean(losses)), new_t


def original_logits(features, labels, kernel, t, m, s):
    """The scalar version as its authors compute it (mask, overwrite, scatter), restated for float64."""
    cos = (F.normalize(features) @ F.normalize(kernel, dim=0)).clamp(-1, 1)
    target = cos[torch.arange(len(labels)), labels].view(-1, 1)
    shifted = target * math.cos(m) - (1 - target**2).sqrt() * math.sin(m)
    hard = cos > shifted
    final = torch.where(target > math.cos(math.pi - m), shifted, target - math.sin(math.pi - m) * m)
    t = 0.01 * target.mean() + 0.99 * t
    cos[hard] = cos[hard] * (t + cos[hard])
    cos[torch.arange(len(labels)), labels] = final.squeeze(1)
    return cos * s, t


def random_batch(batch, classes, size, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, size)), rng.integers(classes, size=batch), rng.normal(size=(classes, size))


def with_proxies(loss, proxies):
    with torch.no_grad():
        loss.proxies.copy_(torch.as_tensor(proxies))
    return loss


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 9),
    classes=st.integers(1, 7),
    size=st.integers(2, 6),
    per_class=st.booleans(),
    update_first=st.booleans(),
    margin=st.floats(0, 1.5),
    momentum=st.floats(0, 0.99),
    seed=st.integers(0, 1000),
)
def test_several_steps_match_the_formula(batch, classes, size, per_class, update_first, margin, momentum, seed):
    loss = CurricularFace(classes, size, margin, 32.0, momentum, per_class, update_first)
    t = np.zeros(classes) if per_class else 0.0
    for step in range(3):
        embeddings, labels, proxies = random_batch(batch, classes, size, 3 * seed + step)
        with_proxies(loss, proxies)
        value = loss(torch.tensor(embeddings, dtype=torch.float32), torch.tensor(labels))
        expected, t = oracle_step(embeddings, labels.tolist(), proxies, t, margin, 32.0, momentum, update_first)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected, rel=2e-4, abs=1e-4)
        np.testing.assert_allclose(loss.t.numpy(), t, atol=1e-6)


@pytest.mark.parametrize("per_class", [True, False])
def test_both_branches_with_hard_and_easy_negatives(per_class):
    """Angles chosen by hand, so that every case of the formula occurs, and is seen to occur."""
    angles = torch.tensor([0.0, 0.2, 1.5, 3.0], dtype=torch.float64)
    proxies = torch.stack([angles.cos(), angles.sin()], dim=1)
    samples = torch.tensor([0.05, 3.1, 1.45], dtype=torch.float64)
    embeddings = torch.stack([samples.cos(), samples.sin()], dim=1)
    labels = torch.tensor([0, 0, 2])
    t = torch.tensor([0.3, 0.0, 0.6, 0.0]).double() if per_class else torch.tensor(0.4).double()
    cosines = embeddings @ proxies.T
    phi = torch.tensor([oracle_phi(c.item(), 0.3) for c in cosines.gather(1, labels[:, None])], dtype=torch.float64)
    assert cosines[1, 0] < math.cos(math.pi - 0.3) < cosines[0, 0]  # the fallback, and the plain branch
    assert (cosines[0, 1] > phi[0]) and (cosines[0, 2] < phi[0])  # a hard and an easy negative of sample 0
    logits = curricular_logits(cosines, labels, t, 0.3)
    for i, y in enumerate(labels.tolist()):
        own_t = t[y] if per_class else t
        for j in range(4):
            c = cosines[i, j]
            expected = phi[i] if j == y else c if c <= phi[i] else c * (own_t + c)
            assert logits[i, j].item() == pytest.approx(float(expected), abs=1e-12)


def test_own_class_t_modulates_the_negatives():
    """In per-class mode t of the sample's class matters to it, t of the negative's class does not."""
    cosines = torch.tensor([[0.1, 0.8]])
    labels = torch.tensor([0])
    logits = [curricular_logits(cosines, labels, torch.tensor(t), 0.3)[0, 1].item() for t in ([0.5, 0.0], [0.0, 0.5])]
    assert logits == pytest.approx([0.8 * (0.5 + 0.8), 0.8 * 0.8])


def test_scalar_version_matches_the_original_code():
    loss = CurricularFace(7, 5, margin=0.5, scale=64.0, per_class=False, update_first=True)
    t = torch.tensor(0.0, dtype=torch.float64)
    for seed in range(5):
        embeddings, labels, proxies = (torch.as_tensor(a) for a in random_batch(16, 7, 5, seed))
        embeddings[0] = -proxies[labels[0]] + 0.01  # one sample in the fallback branch
        logits, t = original_logits(embeddings, labels, proxies.T, t, 0.5, 64.0)
        value = with_proxies(loss, proxies)(embeddings, labels)
        assert value.item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert loss.t.item() == pytest.approx(t.item(), abs=1e-6)


@pytest.mark.parametrize("classes", [7, 40_000])  # so many that they are taken in several parts
@pytest.mark.parametrize("per_class", [True, False])
def test_value_and_gradients_are_those_of_all_logits_at_once(per_class, classes):
    torch.manual_seed(0)
    loss = CurricularFace(classes, 5, per_class=per_class).eval()
    loss.t.uniform_(0, 0.5)
    labels = torch.tensor([0, 6, 2, 2, 3, 0])
    embeddings = torch.randn(6, 5, requires_grad=True)
    with torch.no_grad():
        loss.proxies[2] = -embeddings[2]  # a target in the fallback branch
        loss.proxies[1] = embeddings[0]  # a hard negative
    cosines = F.normalize(embeddings) @ F.normalize(loss.proxies).T
    expected = F.cross_entropy(32.0 * curricular_logits(cosines, labels, loss.t, 0.3), labels)
    value = loss(embeddings, labels)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    wanted = torch.autograd.grad(expected, [embeddings, loss.proxies])
    for gradient, straightforward in zip(torch.autograd.grad(value, [embeddings, loss.proxies]), wanted, strict=True):
        torch.testing.assert_close(gradient, straightforward, rtol=1e-4, atol=1e-5)


def test_gradcheck_of_targets_and_negatives():
    torch.manual_seed(1)
    units, proxies = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (6, 5))
    labels, t = torch.tensor([0, 1, 2, 3, 0, 4]), torch.rand(6, dtype=torch.float64)
    targets = torch.linspace(-0.9, 0.9, 6, dtype=torch.float64)

    def function(x, p):
        return targets_and_negatives(F.normalize(x), p, labels, targets, t, 8.0)

    assert torch.autograd.gradcheck(function, (units, proxies))


def test_the_average_is_used_before_or_after_its_update_as_told():
    """One sample, one hard negative, t = 0 at first: the order of use and update is all that differs."""
    embeddings, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    target, negative = math.cos(1.0), math.cos(0.5)
    proxies = [[target, math.sin(1.0)], [negative, math.sin(0.5)]]
    for update_first, t in [(False, 0.0), (True, 0.5 * target)]:
        loss = with_proxies(CurricularFace(2, 2, momentum=0.5, update_first=update_first), proxies)
        logits = torch.tensor([[32 * oracle_phi(target, 0.3), 32 * negative * (t + negative)]])
        assert loss(embeddings, labels).item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert loss.t[0].item() == pytest.approx(0.5 * target, rel=1e-6)


def test_a_single_class_costs_nothing_and_moves_nothing():
    loss = CurricularFace(1, 4)
    embeddings = torch.randn(3, 4, requires_grad=True)
    value = loss(embeddings, torch.zeros(3, dtype=torch.int64))
    value.backward()
    assert value.item() == 0
    assert torch.equal(embeddings.grad, torch.zeros(3, 4))
    assert torch.equal(loss.proxies.grad, torch.zeros(1, 4))


def test_nothing_of_batch_times_classes_is_kept_for_the_gradient():
    batch, classes, size = 64, 1000, 4
    loss = CurricularFace(classes, size)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        loss(torch.randn(batch, size, requires_grad=True), torch.arange(batch))
    assert 0 < max(kept) <= classes * size < batch * classes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angular_margin_at_the_ends(dtype):
    """Right value and finite gradient at cosine exactly 1 and -1, and just beyond by rounding."""
    step = torch.finfo(dtype).eps
    cosines = torch.tensor([1.0, 1.0 + step, -1.0, -1.0 - step], dtype=dtype, requires_grad=True)
    phi = add_angular_margin(cosines, 0.3)
    low = -1 - 0.3 * math.sin(0.3)
    expected = torch.tensor([math.cos(0.3), math.cos(0.3), low, low], dtype=dtype)
    torch.testing.assert_close(phi, expected, rtol=0, atol=4 * step)
    (gradient,) = torch.autograd.grad(phi.sum(), cosines)
    torch.testing.assert_close(gradient, torch.tensor([math.cos(0.3)] * 2 + [1.0] * 2, dtype=dtype))


def test_angular_margin_falls_with_the_angle():
    theta = torch.linspace(0, math.pi, 1001, dtype=torch.float64)
    for margin in (0.0, 0.3, 0.5, 1.0):
        assert (add_angular_margin(theta.cos(), margin).diff() < 0).all()


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("target", [1.0, -1.0])
@pytest.mark.parametrize("negative", [1.0, -1.0])
def test_loss_is_right_and_gradients_finite_at_cosine_one(per_class, target, negative):
    axis = torch.tensor([1.0, 0.0, 0.0])
    loss = with_proxies(CurricularFace(2, 3, per_class=per_class), torch.stack([target * axis, negative * axis]))
    embeddings = axis.repeat(4, 1).requires_grad_()
    value = loss(embeddings, torch.zeros(4, dtype=torch.int64))
    value.backward()
    arrays = embeddings.detach().double().numpy(), [0] * 4, loss.proxies.detach().double().numpy()
    expected, _ = oracle_step(*arrays, np.zeros(2) if per_class else 0.0, 0.3, 32.0, 0.99, False)
    assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert torch.isfinite(embeddings.grad).all()
    assert torch.isfinite(loss.proxies.grad).all()


def test_bfloat16_under_autocast_equals_float32_on_the_same_inputs():
    torch.manual_seed(0)
    embeddings = torch.randn(12, 16).bfloat16()
    labels = torch.randint(5, (12,))
    loss = CurricularFace(5, 16)
    twin = copy.deepcopy(loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(embeddings, labels)
    assert value.dtype == torch.float32
    assert value.item() == twin(embeddings.float(), labels).item()
    assert torch.equal(loss.t, twin.t)


@pytest.mark.parametrize("per_class", [True, False])
def test_state_dict_carries_t_and_continues_identically(per_class):
    torch.manual_seed(0)
    batches = [(torch.randn(6, 4), torch.randint(5, (6,))) for _ in range(4)]
    first = CurricularFace(5, 4, per_class=per_class)
    for batch in batches[:2]:
        first(*batch)
    assert first.t.abs().sum() > 0
    second = CurricularFace(5, 4, per_class=per_class)
    second.load_state_dict(first.state_dict())
    for batch in batches[2:]:
        assert first(*batch).item() == second(*batch).item()
    assert torch.equal(first.t, second.t)


def test_t_moves_only_in_training_and_only_for_present_classes():
    torch.manual_seed(0)
    loss = CurricularFace(6, 4)
    embeddings, labels = torch.randn(5, 4), torch.tensor([1, 1, 3, 3, 3])
    loss.eval()(embeddings, labels)
    assert torch.equal(loss.t, torch.zeros(6))
    loss.train()(embeddings, labels)
    before = loss.t.clone()
    assert before.nonzero().flatten().tolist() == [1, 3]
    loss(embeddings[:2], labels[:2])
    assert torch.equal(loss.t != before, torch.tensor([False, True] + [False] * 4))
    assert not loss.t.requires_grad


def test_two_forwards_before_one_backward():
    """Gradient accumulation: the in-place update of t must not touch what an earlier graph saved."""
    loss = CurricularFace(3, 4, per_class=False)
    embeddings = torch.randn(4, 4, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0])
    (loss(embeddings, labels) + loss(embeddings, labels)).backward()
    assert torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"scale": 0.0}, "scale must be positive"),
        ({"scale": math.inf}, "scale must be positive"),
        ({"margin": -0.1}, "margin must be in"),
        ({"margin": math.nan}, "margin must be in"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
    ],
)
def test_bad_constants_are_named(constants, message):
    with pytest.raises(ValueError, match=message):
        CurricularFace(**({"num_classes": 3, "embedding_size": 4} | constants))
