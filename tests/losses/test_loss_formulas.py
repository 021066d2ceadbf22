"""Each loss against its paper's formula, written as loops in double precision, and METHOD's constants."""

import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning import distances, losses, miners

from unimetric.losses import make_loss

CLASSES, SIZE, BATCH = 6, 5, 10


def case(name, options=None, seed=0):
    """(loss module, embeddings, labels, unit embeddings, unit proxies [n, E]), the latter two float64 arrays.

    Class 5 is never in the batch, so that a loss over proxies has one without positives.
    """
    torch.manual_seed(seed)
    loss = make_loss(name, CLASSES, SIZE, options)
    embeddings, labels = torch.randn(BATCH, SIZE), torch.randint(CLASSES - 1, (BATCH,))
    proxies = [p.detach().double().numpy() for p in loss.parameters()]
    units = None
    if proxies:
        rows = proxies[0] if proxies[0].shape[1] == SIZE else proxies[0].T
        units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    x = embeddings.double().numpy()
    return loss, embeddings, labels, x / np.linalg.norm(x, axis=1, keepdims=True), units


def cross_entropy(logits, label):
    return np.log(np.sum(np.exp(logits - np.max(logits)))) + np.max(logits) - logits[label]


def test_proxy_anchor():
    loss, embeddings, labels, x, p = case("proxy-anchor")
    positive = negative = 0.0
    for c in range(CLASSES):
        cosines = x @ p[c]
        of_class = labels.numpy() == c
        if of_class.any():
            positive += math.log1p(np.sum(np.exp(-32 * (cosines[of_class] - 0.1))))
        negative += math.log1p(np.sum(np.exp(32 * (cosines[~of_class] + 0.1))))
    expected = positive / len(set(labels.tolist())) + negative / CLASSES
    assert loss(embeddings, labels).item() == pytest.approx(expected, rel=1e-5)


def test_proxynca_pp():
    loss, embeddings, labels, x, p = case("proxynca++")
    squared = ((x[:, None] - p[None]) ** 2).sum(-1)
    expected = np.mean([cross_entropy(-9 * squared[i], y) for i, y in enumerate(labels.tolist())])
    assert loss(embeddings, labels).item() == pytest.approx(expected, rel=1e-5)


def test_proxynca_pp_equals_the_librarys_proxynca_on_squared_distances():
    loss, embeddings, labels, _, p = case("proxynca++")
    twin = losses.ProxyNCALoss(
        CLASSES, SIZE, softmax_scale=9, distance=distances.LpDistance(normalize_embeddings=True, p=2, power=2)
    )
    with torch.no_grad():
        twin.proxies.copy_(torch.as_tensor(p))
    assert loss(embeddings, labels).item() == pytest.approx(twin(embeddings, labels).item(), rel=1e-5)


def test_softtriple():
    loss, embeddings, labels, x, p = case("softtriple")
    centers = p.reshape(CLASSES, 10, SIZE)
    expected = []
    for i, y in enumerate(labels.tolist()):
        similarities = []
        for c in range(CLASSES):
            to_centers = centers[c] @ x[i]
            weights = np.exp(to_centers / 0.1)
            similarities.append((weights / weights.sum()) @ to_centers - (0.01 if c == y else 0))
        expected.append(cross_entropy(20 * np.array(similarities), y))
    assert loss(embeddings, labels).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_cosface():
    loss, embeddings, labels, x, p = case("cosface")
    cosines = x @ p.T
    cosines[np.arange(BATCH), labels.numpy()] -= 0.35
    expected = np.mean([cross_entropy(64 * cosines[i], y) for i, y in enumerate(labels.tolist())])
    assert loss(embeddings, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_arcface(seed):
    loss, embeddings, labels, x, p = case("arcface", seed=seed)
    cosines = x @ p.T
    opposite = -loss.loss.W.detach()[:, labels[0]]  # sample 0 falls below cos(pi - m)
    embeddings[0], cosines[0] = opposite, -p[labels[0]] @ p.T
    for i, y in enumerate(labels.tolist()):
        theta = math.acos(np.clip(cosines[i, y], -1, 1))
        past_pi = theta + 0.5 >= math.pi
        cosines[i, y] = cosines[i, y] - 0.5 * math.sin(0.5) if past_pi else math.cos(theta + 0.5)
    expected = np.mean([cross_entropy(64 * cosines[i], y) for i, y in enumerate(labels.tolist())])
    assert loss(embeddings, labels).item() == pytest.approx(expected, rel=1e-5)


def test_arcface_equals_the_librarys_where_that_is_finite():
    loss, embeddings, labels, _, _ = case("arcface")
    twin = losses.ArcFaceLoss(CLASSES, SIZE, margin=math.degrees(0.5), scale=64)
    twin.load_state_dict(loss.loss.state_dict())
    leaves = [embeddings.clone().requires_grad_() for _ in range(2)]
    values = [module(leaf, labels) for module, leaf in zip((loss, twin), leaves, strict=True)]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-6)
    sum(values).backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-4, atol=1e-4)


def test_triplet_takes_the_hardest_pairs():
    loss, embeddings, labels, x, _ = case("triplet")
    cosines, y = x @ x.T, labels.numpy()
    violations = []
    for a in range(BATCH):
        positives = [cosines[a, i] for i in range(BATCH) if i != a and y[i] == y[a]]
        negatives = [cosines[a, i] for i in range(BATCH) if y[i] != y[a]]
        if positives and max(negatives) - min(positives) + 0.05 > 0:
            violations.append(max(negatives) - min(positives) + 0.05)
    assert loss(embeddings, labels).item() == pytest.approx(np.mean(violations), rel=1e-5)


def test_multi_similarity_with_its_mining():
    loss, embeddings, labels, x, _ = case("multi-similarity")
    cosines, y = x @ x.T, labels.numpy()
    per_anchor = []
    for a in range(BATCH):
        positives = [cosines[a, i] for i in range(BATCH) if i != a and y[i] == y[a]]
        negatives = [cosines[a, i] for i in range(BATCH) if y[i] != y[a]]
        hardest_negative, hardest_positive = max(negatives), min(positives, default=math.inf)
        kept_positives = np.array([c for c in positives if c - 0.1 < hardest_negative])
        kept_negatives = np.array([c for c in negatives if c + 0.1 > hardest_positive])
        pull = math.log1p(np.sum(np.exp(-2 * (kept_positives - 0.5)))) / 2
        push = math.log1p(np.sum(np.exp(50 * (kept_negatives - 0.5)))) / 50
        per_anchor.append(pull + push)
    assert loss(embeddings, labels).item() == pytest.approx(np.mean(per_anchor), rel=1e-5)


def test_margin_where_its_draws_leave_no_choice():
    """Two images of a class and one other: each anchor's positive and negative are given."""
    angles = torch.tensor([0.0, 1.4, 0.9])
    embeddings, labels = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0, 0, 1])
    loss = make_loss("margin", 2, 2)
    chord = lambda a, b: 2 * math.sin(abs(angles[a].item() - angles[b].item()) / 2)  # noqa: E731
    terms = []
    for anchor, positive in ((0, 1), (1, 0)):
        terms += [max(0.0, chord(anchor, positive) - 1.2 + 0.2), max(0.0, 1.2 - chord(anchor, 2) + 0.2)]
    expected = sum(terms) / sum(term > 0 for term in terms)
    assert loss(embeddings, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1 / 9, 1 / 100])
def test_proxynca_pp_keeps_its_hardest_sample(temperature):
    """At a low temperature the target's probability underflows; its loss must not vanish with it."""
    loss = make_loss("proxynca++", 2, 2, {"temperature": temperature})
    with torch.no_grad():
        loss.loss.W.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
    value = loss(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert value.item() == pytest.approx(4 / temperature, rel=1e-5)


def test_constants_are_those_of_the_method():
    """METHOD section 3, read off the library's objects rather than off our own defaults."""
    made = {name: case(name)[0] for name in ("triplet", "margin", "multi-similarity", "proxy-anchor")}
    made |= {name: case(name)[0] for name in ("proxynca++", "softtriple", "cosface", "arcface", "curricularface")}
    triplet, margin, multi = made["triplet"], made["margin"], made["multi-similarity"]
    assert triplet.loss.margin == 0.05
    assert isinstance(triplet.loss.distance, distances.CosineSimilarity)
    assert isinstance(triplet.miner, miners.BatchHardMiner)
    assert (margin.loss.margin, margin.loss.nu, margin.loss.learn_beta) == (0.2, 0, False)
    assert margin.loss.beta.tolist() == pytest.approx([1.2])
    assert (margin.miner.cutoff, margin.miner.nonzero_loss_cutoff) == (0.5, 1.4)
    assert (multi.loss.alpha, multi.loss.beta, multi.loss.base, multi.miner.epsilon) == (2, 50, 0.5, 0.1)
    assert (made["proxy-anchor"].loss.margin, made["proxy-anchor"].loss.alpha) == (0.1, 32)
    assert 1 / made["proxynca++"].loss.temperature == pytest.approx(2 * 9)
    soft = made["softtriple"].loss
    assert (soft.centers_per_class, soft.la, 1 / soft.gamma, soft.margin) == (10, 20, 0.1, 0.01)
    assert (made["cosface"].loss.margin, made["cosface"].loss.scale) == (0.35, 64)
    assert (made["arcface"].loss.margin, made["arcface"].loss.scale) == (pytest.approx(0.5), 64)
    face = made["curricularface"]
    assert (face.margin, face.scale, face.momentum, face.per_class) == (0.3, 32, 0.99, True)
