"""SRE-CLIP: its equations against loops written here; training, checkpoints, embeddings of images and classes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import benchmarks  # noqa: F401 (brings WordNet's nouns)
from methods.interface import FitReport, TrainingData
from methods.official import sre_clip as official
from methods.parts.backbone import Backbone
from methods.parts.senses import WordNetError
from methods.parts.word_graph import receptive_field
from methods.plain import sre_clip as plain
from methods.sre_clip import (
    LAYERS,
    PAPER_STEPS,
    AttentionAdapter,
    FeatureMemory,
    SreClip,
    SreClipConfig,
    SreClipModel,
    learning_rate,
    pair_loss,
)
from methods.training.loop import seeded
from tests.support.images import InMemoryImages

CLASSES = ("cat", "hot_air_balloon", "dog", "sea_turtle", "qwertyuiop", "horse")
SYNSETS = {"sea_turtle": "sea_turtle.n.01", "hot_air_balloon": "hot-air_balloon.n.01"}
SEEN = 4  # classes with labelled images
QUICK = SreClipConfig(width=32, steps=6, batch_size=8, reference_size=8, memory=16)


def made_up_images(labels: list[int], tint: float) -> InMemoryImages:
    """A pattern for each class and some noise, in 32 x 32 pixels."""
    draw = torch.Generator().manual_seed(5)
    patterns = torch.rand(len(CLASSES), 3, 32, 32, generator=draw)
    noise = torch.rand(len(labels), 3, 32, 32, generator=torch.Generator().manual_seed(int(100 * tint)))
    return InMemoryImages((0.7 * patterns[labels] + 0.3 * noise + tint).clamp(0, 1))


def task(*, target: bool = True, per_class: int = 5, seen: int = SEEN, **extra: Any) -> TrainingData:
    """Labelled images of the first ``seen`` classes in two domains; unlabelled ones of all classes."""
    labels = [c for c in range(seen) for _ in range(per_class)]
    everyone = [c for c in range(len(CLASSES)) for _ in range(per_class)]
    return TrainingData(
        **{
            "protocol": "test",
            "images": made_up_images(labels, 0.1),
            "labels": torch.tensor(labels),
            "domains": torch.arange(len(labels)) % 2,
            "class_names": CLASSES,
            "domain_names": ("sketch", "icon"),
            "target": made_up_images(everyone, 0.2) if target else None,
            "synsets": SYNSETS,
            **extra,
        }
    )


def quiet(**_: Any) -> None:
    """A log that keeps nothing."""


def fitted(backbone: Backbone, config: SreClipConfig = QUICK, seed: int = 0, **extra: Any) -> tuple[SreClip, FitReport]:
    method = SreClip(backbone, config)
    return method, method.fit(task(**extra), seed=seed, log=quiet)


def toy(config: SreClipConfig = QUICK, classes: int = 5, width: int = 7, texts: bool = True) -> SreClipModel:
    """A model on random vectors and a small graph; the last two classes are unseen."""
    draw = seeded(1)
    edges = torch.tensor([[classes, 0], [classes, 1], [classes + 1, 2], [classes + 2, classes], [classes + 2, 3]])
    vectors = F.normalize(torch.randn(classes + 3, width, generator=draw), dim=-1)
    field = receptive_field(edges, classes + 3, range(classes), LAYERS)
    seen = torch.arange(classes) < classes - 2
    model = SreClipModel(config, width, vectors[field.nodes], field, seen, vectors[:classes] if texts else None, draw)
    for parameter in model.parameters():  # biases too
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
    model.edges, model.all_vectors = edges, vectors
    return model


def features(rows: int = 6, width: int = 7, seed: int = 3) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=seeded(seed)), dim=-1)


# --- equations -------------------------------------------------------------------------------------------------------


def loop_attention(adapter: AttentionAdapter, query: Tensor, context: Tensor) -> Tensor:
    """One image's output, key by key."""
    q = adapter.q(query)
    scores = [float(q @ adapter.k(key)) / math.sqrt(len(q)) for key in context]
    total = sum(math.exp(score) for score in scores)
    output = adapter.v(query).clone()
    for score, key in zip(scores, context, strict=True):
        output += math.exp(score) / total * adapter.v(key)
    return output


@torch.no_grad()
def test_attention_is_what_the_equation_says() -> None:
    adapter, z, reference = toy().adapter, features(), features(4, seed=8)
    patches = torch.randn(6, 3, 7, generator=seeded(9))
    cases = {"batch": (z, [z] * 6), "reference": (reference, [reference] * 6), "patches": (patches, list(patches))}
    for name, (given, contexts) in cases.items():
        expected = torch.stack([loop_attention(adapter, row, c) for row, c in zip(z, contexts, strict=True)])
        torch.testing.assert_close(adapter(z, given), expected, msg=name)
    torch.testing.assert_close(adapter(z, None), adapter.v(z))
    torch.testing.assert_close(adapter(z, z.unsqueeze(1)), 2 * adapter.v(z))  # an image that attends to itself


@torch.no_grad()
@pytest.mark.parametrize("parts", [{}, {"residual": False}, {"gcn": False}])
def test_prototypes_equal_the_dense_products(parts: dict[str, Any]) -> None:
    """torch_geometric's message passing on the receptive field, and dense products over the whole graph."""
    model = toy(replace(QUICK, **parts))
    branch, x, nodes = model.prototype_branch, model.all_vectors, len(model.all_vectors)
    counts = torch.eye(nodes)
    for parent, child in model.edges.tolist():
        counts[parent, child] += 1
        counts[child, parent] += 1
    ahat = counts.T / counts.T.sum(dim=1, keepdim=True)
    expected = torch.zeros(5, 32)
    if branch.layer1 is not None:
        hidden = F.leaky_relu(ahat @ (x @ branch.layer1.weight.T) + branch.layer1.bias, 0.2)
        expected += (ahat @ (hidden @ branch.layer2.weight.T) + branch.layer2.bias)[:5]
    if branch.residual is not None:
        expected += x[:5] @ branch.residual.weight.T
    torch.testing.assert_close(model.prototypes(), F.normalize(expected, dim=-1))


@torch.no_grad()
def test_dropout_is_drawn_from_the_generator() -> None:
    model = toy()
    first, again, other = (model.prototypes(seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(model.prototypes(), model.prototypes())
    assert not torch.equal(first, model.prototypes())
    unchanged = toy(replace(QUICK, dropout=0.0))
    assert torch.equal(unchanged.prototypes(seeded(1)), unchanged.prototypes())


def loop_pairs(before: Tensor, after: Tensor, half: bool) -> float:
    """L_pair, pair by pair."""
    values = []
    for r in range(before.shape[0]):
        for i in range(before.shape[1]):
            for j in range(before.shape[1] - i if half else before.shape[1]):
                if before[r, i] < before[r, j]:
                    values.append(max(0.0, float(after[r, i] - after[r, j])))
    return sum(values) / len(values) if values else math.nan


@pytest.mark.parametrize("levels", [0, 3])
def test_pair_loss(levels: int) -> None:
    """By sorting, and by comparing all pairs; with (``levels`` > 0) and without equal distances; also gradients."""
    draw = seeded(4)
    before, after = torch.rand(6, 9, generator=draw), torch.rand(6, 9, generator=draw)
    if levels:
        before = (before * levels).floor()
    after.requires_grad_(True)
    gradients = []
    for loss in (pair_loss, plain.pair_loss):
        value = loss(before, after)
        assert float(value.detach()) == pytest.approx(loop_pairs(before, after.detach(), half=False), rel=1e-5)
        gradients.append(torch.autograd.grad(value, after)[0])
    torch.testing.assert_close(*gradients)
    half = plain.pair_loss(before, after, half=True)
    assert float(half.detach()) == pytest.approx(loop_pairs(before, after.detach(), half=True), rel=1e-5)


def test_pair_loss_without_pairs_or_without_reversals() -> None:
    same = torch.rand(4, 5, generator=seeded(0))
    for loss in (pair_loss, plain.pair_loss):
        assert loss(torch.zeros(4, 5), same).isnan()
        assert float(loss(same, 2 * same)) == 0
    with torch.no_grad():
        lone = toy(replace(QUICK, pair_reading="diagonal", pair_list="half"))
        assert float(lone.structure_loss(lone.prototypes())) == 0
        broken = toy(replace(QUICK, pair_reading="diagonal", pair_list="half", empty_pairs="nan"))
        assert broken.structure_loss(broken.prototypes()).isnan()


@torch.no_grad()
def test_source_terms() -> None:
    model, z, labels = toy(), features(), torch.tensor([0, 1, 2, 1, 0, 2])
    prototypes, e = model.prototypes(), model.embed(z)
    terms = model.source_terms(z, labels, prototypes)
    tau, classes = QUICK.temperature, range(5)
    cosine = [[float(e[b] @ prototypes[c]) for c in classes] for b in range(6)]

    def cross_entropy(row: list[float], y: int) -> float:
        return math.log(sum(math.exp(value / tau) for value in row)) - row[y] / tau

    expected = sum(cross_entropy(row, int(y)) for row, y in zip(cosine, labels, strict=True)) / 6
    assert float(terms["classification"]) == pytest.approx(expected, rel=1e-5)
    squares = [(cosine[b][c] - float(prototypes[labels[b]] @ prototypes[c])) ** 2 for b in range(6) for c in classes]
    assert float(terms["srs"]) == pytest.approx(sum(squares) / len(squares), rel=1e-4)
    texts = model.embed(model.texts)
    aligned = [cross_entropy([float(texts[c] @ prototypes[k]) for k in classes], c) for c in classes]
    assert float(terms["align"]) == pytest.approx(sum(aligned) / 5, rel=1e-5)
    vectors = model.all_vectors[:5]
    distances = [[[float((a - b).norm()) for b in rows] for a in rows] for rows in (vectors, prototypes)]
    pairs = loop_pairs(torch.tensor(distances[0]), torch.tensor(distances[1]), half=False)
    assert float(terms["structure"]) == pytest.approx(pairs, rel=1e-3)
    total = terms["classification"] + 100 * terms["structure"] + terms["srs"] + terms["align"]
    assert float(model.total(terms)) == pytest.approx(float(total), rel=1e-5)


@torch.no_grad()
def test_srs_switches() -> None:
    z, labels = features(), torch.tensor([0, 1, 2, 1, 0, 2])
    for scale, kind in (("cosine", "predicted"), ("logits", "label"), ("logits", "predicted")):
        model = toy(replace(QUICK, srs_scale=scale, srs_class=kind))
        prototypes, e = model.prototypes(), model.embed(z)
        cosine = e @ prototypes.T
        classes = labels if kind == "label" else cosine.argmax(dim=1)
        scores = cosine / QUICK.temperature if scale == "logits" else cosine
        expected = ((scores - prototypes[classes] @ prototypes.T) ** 2).mean()
        torch.testing.assert_close(model.source_terms(z, labels, prototypes)["srs"], expected)


@torch.no_grad()
def test_target_terms() -> None:
    model, memory = toy(), FeatureMemory(9)
    prototypes, tau = model.prototypes(), QUICK.temperature
    stored = [model.embed(features(seed=seed)) for seed in (11, 12)]
    assert not any(model.remember(e, memory) for e in stored)  # full only now: 9 of 12 rows
    z = features(seed=13)
    e = model.embed(z)
    terms = model.target_terms(z, prototypes, memory)
    posterior = [[math.exp(float(e[b] @ prototypes[c]) / tau) for c in range(5)] for b in range(6)]
    posterior = [[value / sum(row) for value in row] for row in posterior]
    entropy = -sum(p * math.log(p) for row in posterior for p in row) / 6
    assert float(terms["entropy"]) == pytest.approx(entropy, rel=1e-4)
    mass = sum(row[3] + row[4] for row in posterior) / 6
    assert float(terms["balance"]) == pytest.approx(mass + 0.4**2 / mass, rel=1e-4)  # 2 of 5 classes are unseen
    rows = torch.cat([e, torch.cat(stored)[6:9]])  # the six new ones over the six oldest
    mean = (rows @ prototypes.T / tau).softmax(dim=1).mean(dim=0)
    assert float(terms["memory"]) == pytest.approx(float((mean * mean.log()).sum()), rel=1e-4)
    chosen = (e @ prototypes.T).argmax(dim=1)
    torch.testing.assert_close(terms["target_srs"], F.mse_loss(e @ prototypes.T, prototypes[chosen] @ prototypes.T))
    total = 3 * terms["entropy"] + 5 * terms["memory"] + 5 * terms["balance"] + terms["target_srs"]
    assert float(model.total(terms)) == pytest.approx(float(total), rel=1e-5)


def gradient_free(model: SreClipModel, loss: Tensor) -> set[str]:
    """Which branches a loss does not train."""
    model.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    named = {"adapter": model.adapter, "prototypes": model.prototype_branch}
    return {n for n, part in named.items() if all(p.grad is None or not p.grad.any() for p in part.parameters())}


def test_what_the_target_terms_train() -> None:
    for switch, balance in (("memory", set()), ("none", {"prototypes"})):
        model, memory = toy(replace(QUICK, target_gradients=switch)), FeatureMemory(6)
        with torch.no_grad():
            model.remember(model.embed(features(seed=11)), memory)
        terms = model.target_terms(features(), model.prototypes(), memory)
        assert gradient_free(model, terms["entropy"]) == {"prototypes"}
        assert gradient_free(model, terms["balance"]) == balance
        if switch == "memory":
            assert gradient_free(model, terms["memory"]) == {"adapter"}
        else:
            assert not terms["memory"].requires_grad


def test_no_balance_without_unseen_classes() -> None:
    model, memory = toy(), FeatureMemory(6)
    model.seen[:] = True
    with torch.no_grad():
        model.remember(model.embed(features(seed=11)), memory)
        assert set(model.target_terms(features(), model.prototypes(), memory)) == {"entropy", "memory", "target_srs"}


def test_memory_keeps_the_last_rows() -> None:
    memory, history = FeatureMemory(7), []
    for number in range(6):
        batch = torch.arange(3.0).unsqueeze(1) + 10 * number
        full = memory.push(batch)
        history += batch.flatten().tolist()
        assert full == (number >= 3)
    history = history[:7] + history[9:]  # of the batch that filled the store, two rows did not fit
    assert memory.rows is not None
    assert sorted(memory.rows.flatten().tolist()) == sorted(history[-7:])


def test_official_memory_overfills() -> None:
    memory = official.SurplusMemory(7)
    pointers = []
    for number in range(6):
        memory.push(torch.full((3, 1), float(number)))
        assert memory.rows is not None
        pointers.append((len(memory.rows), memory.pointer))
    assert pointers == [(3, 0), (6, 0), (9, 0), (9, 3), (9, 0), (9, 3)]
    assert memory.rows.flatten().tolist() == [5.0] * 3 + [4.0] * 3 + [2.0] * 3


def test_learning_rate() -> None:
    config = SreClipConfig()
    assert [learning_rate(config, step, PAPER_STEPS) for step in (0, 600)] == [1e-3, 1e-3]
    assert learning_rate(config, 1600, PAPER_STEPS) == pytest.approx(1e-3 * 2**-0.75)
    for step in (0, 10, 20, 55, 100):  # a shorter budget passes through the same rates
        assert learning_rate(config, step, 100) == pytest.approx(learning_rate(config, 30 * step, PAPER_STEPS))
    model = toy()
    scales = {id(p): g["scale"] for g in model.optimizer().param_groups for p in g["params"]}
    assert {scales[id(p)] for p in model.adapter.parameters()} == {1.0}
    assert {scales[id(p)] for p in model.prototype_branch.parameters()} == {5.0}


# --- fit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("attention", "falls_to"), [("batch", 0.8), ("none", 0.2)])
def test_it_learns(tiny_backbone: Backbone, attention: Any, falls_to: float) -> None:
    """Random CLIP features of all images are nearly equal, and the mean of a batch makes them more so."""
    config = replace(QUICK, attention=attention, steps=100, batch_size=20, learning_rate=1e-2, dropout=0.0)
    method, report = fitted(tiny_backbone, config, seed=1, target=False)
    losses = [float(entry["loss"]) for entry in report.losses]
    assert sum(losses[-5:]) < falls_to * sum(losses[:5])
    assert report.steps == config.steps
    assert report.trainable_parameters == sum(p.numel() for p in method.model.parameters())
    if attention == "none":
        data = task()
        logits = method.classify(data.images.pixels(torch.arange(len(data.images))), CLASSES[:SEEN])
        assert float((logits.argmax(dim=1) == data.labels).float().mean()) > 0.9


def test_same_seed_same_bits(tiny_backbone: Backbone) -> None:
    runs = [fitted(tiny_backbone, seed=seed)[0].tensors() for seed in (3, 3, 4)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.equal(runs[0]["adapter.q.weight"], runs[2]["adapter.q.weight"])


def test_clip_does_not_run_in_training(tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """No image and no text passes CLIP after the first step of training."""
    method, steps, calls = SreClip(tiny_backbone, QUICK), 0, 0

    def log(**entry: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 1:
            for name in ("encode_images", "run_vision", "encode_texts", "run_text"):
                monkeypatch.setattr(tiny_backbone, name, refuse)

    def refuse(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        raise AssertionError("CLIP ran inside training")

    method.fit(task(), seed=0, log=log)
    assert steps == QUICK.steps
    assert calls == 0


@pytest.mark.parametrize("attention", ["batch", "patches"])
def test_plain_path(tiny_backbone: Backbone, attention: Any) -> None:
    """Cached features and sorting against the towers in every step and all pairs: the same model."""
    config = replace(QUICK, attention=attention)
    fast, plain = (fitted(tiny_backbone, replace(config, fast=value)) for value in (True, False))
    for name, value in plain[0].tensors().items():
        torch.testing.assert_close(fast[0].tensors()[name], value, rtol=1e-5, atol=1e-5)
    for one, other in zip(fast[1].losses, plain[1].losses, strict=True):
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-4, abs=1e-5)


def test_target_losses_wait_for_the_warm_up(tiny_backbone: Backbone) -> None:
    config = replace(QUICK, steps=10, warmup_share=0.5)
    with_target, without = (fitted(tiny_backbone, config, target=value)[1].losses for value in (True, False))
    same = [a["loss"] == b["loss"] for a, b in zip(with_target, without, strict=True)]
    assert same == [True] * 5 + [False] * 5


def test_without_target_images_none_are_requested(tiny_backbone: Backbone) -> None:
    data = task(target=False)
    assert not data.has_target
    report = SreClip(tiny_backbone, QUICK).fit(data, seed=0, log=quiet)
    assert report.steps == QUICK.steps


def test_budget_and_validation(tiny_backbone: Backbone) -> None:
    scores = iter([0.1, 0.9, 0.3, 0.2, 0.1])
    data = task(validate=lambda method: next(scores))
    method = SreClip(tiny_backbone, replace(QUICK, steps=0, epochs=2, validate_every=1, patience=3))
    report = method.fit(data, seed=0, log=quiet)  # 2 epochs of 20 images in batches of 8: 6 steps
    assert [entry["score"] for entry in report.validation] == [0.1, 0.9, 0.3, 0.2, 0.1]
    assert report.selected_step == 2
    assert report.steps == 5


@pytest.mark.parametrize("seen", [2, len(CLASSES)])
def test_every_class_split(tiny_backbone: Backbone, seen: int) -> None:
    """Few seen classes (DAZSL), and all of them (UDA)."""
    method, _ = fitted(tiny_backbone, seen=seen)
    assert method.model.seen.sum() == seen
    assert torch.isfinite(method.encode_classes(CLASSES)).all()


CHANGES = {**SreClip.variants, **SreClip.ablations}


@pytest.mark.parametrize("name", CHANGES)
def test_variants_and_ablations(tiny_backbone: Backbone, name: str) -> None:
    config = replace(QUICK, steps=2, warmup_share=0.5, memory=8, **CHANGES[name])
    method, _ = fitted(tiny_backbone, config)
    pixels = task().images.pixels(torch.arange(3))
    for embedded in (method.encode_images(pixels), method.encode_classes([*CLASSES, "zebra"])):
        assert embedded.shape[1] == QUICK.width
        torch.testing.assert_close(embedded.norm(dim=1), torch.ones(len(embedded)))
    assert method.classify(pixels, CLASSES).shape == (3, len(CLASSES))


def test_named_differences_are_switches() -> None:
    fields = SreClipConfig.__dataclass_fields__
    switches = {row.switch for row in SreClip.card.deviations if row.switch}
    assert switches <= set(fields)
    assert set(official.SETTINGS) <= switches
    assert all(row.switch or row.ours for row in SreClip.card.deviations)
    assert SreClipConfig.official() == SreClipConfig(**official.SETTINGS)
    assert {"paper", "official"} == set(SreClip.variants)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graph": "trees"}, "graph 'trees' is not one of wordnet, none, random"),
        ({"gcn": False, "residual": False}, "keep one of them"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **change)


# --- embeddings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eval_attention", ["reference", "self", "batch"])
def test_an_image_and_its_batch(tiny_backbone: Backbone, eval_attention: Any) -> None:
    method, _ = fitted(tiny_backbone, replace(QUICK, eval_attention=eval_attention))
    pixels = task().images.pixels(torch.arange(7))
    together = method.encode_images(pixels)
    alone = torch.cat([method.encode_images(image.unsqueeze(0)) for image in pixels])
    others = method.encode_images(torch.cat([pixels[:1], 1 - pixels[1:]]))[:1]
    independent = eval_attention != "batch"
    assert torch.allclose(together, alone, atol=1e-5) == independent
    assert torch.allclose(together[:1], others, atol=1e-5) == independent


def test_reference_images(tiny_backbone: Backbone) -> None:
    """A fixed draw, half from the target where there is one, kept with the model."""
    for target in (True, False):
        method, _ = fitted(tiny_backbone, target=target)
        data = task(target=target)
        stored = method.tensors()["reference"]
        assert stored.shape == (QUICK.reference_size, tiny_backbone.embed_dim)
        labelled = method.frozen_features(data.images.pixels(torch.arange(len(data.images))))
        known = (torch.cdist(stored, labelled) < 1e-5).any(dim=1)
        assert int(known.sum()) == QUICK.reference_size // (2 if target else 1)


def test_new_class_names(tiny_backbone: Backbone) -> None:
    """A name that training did not know: its embedding depends on no other name; those of known names stay."""
    method, _ = fitted(tiny_backbone)
    known = method.encode_classes(CLASSES)
    mixed = method.encode_classes(["zebra", "cat", "violin", "animal", "asdfgh"])
    assert torch.equal(mixed[1], known[0])
    fresh, _ = fitted(tiny_backbone)
    for row, name in enumerate(("zebra", "cat", "violin", "animal", "asdfgh")):
        torch.testing.assert_close(fresh.encode_classes([name])[0], mixed[row], rtol=0, atol=1e-6)
    assert torch.equal(method.encode_classes(CLASSES), known)


def test_new_names_get_what_training_with_them_would_have_given(tiny_backbone: Backbone) -> None:
    """With the same weights, the graph built with the name gives the same prototype as the extended one."""
    method, _ = fitted(tiny_backbone)
    extended = method.encode_classes(["zebra"])[0]
    other = SreClip(tiny_backbone, QUICK)
    data = task(class_names=(*CLASSES, "zebra"))
    other.build(data, seed=0)
    other.model.load_state_dict(method.model.state_dict())
    torch.testing.assert_close(other.encode_classes(["zebra"])[0], extended, rtol=0, atol=1e-5)


def test_class_embeddings_are_those_of_the_current_weights(tiny_backbone: Backbone) -> None:
    """Class embeddings that validation computes during training are not kept for later calls."""
    seen: list[Tensor] = []

    def validate(method: Any) -> float:
        seen.append(method.encode_classes(CLASSES))
        return float(len(seen))

    method = SreClip(tiny_backbone, replace(QUICK, validate_every=2))
    method.fit(task(validate=validate), seed=0, log=quiet)
    assert len(seen) == 3
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], method.encode_classes(CLASSES))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("change", [{}, {"graph": "random"}, {"attention": "none", "gcn": False}, official.SETTINGS])
def test_saved_and_loaded(tiny_backbone: Backbone, tmp_path: Path, change: dict[str, Any], threads: int) -> None:
    torch.set_num_threads(threads)
    method, _ = fitted(tiny_backbone, replace(QUICK, **change))
    method.save(tmp_path / "model")
    loaded = SreClip.load(tmp_path / "model", tiny_backbone)
    pixels = task().images.pixels(torch.arange(4))
    names = [*CLASSES, "zebra"]
    assert torch.equal(method.encode_images(pixels), loaded.encode_images(pixels))
    assert torch.equal(method.encode_classes(names), loaded.encode_classes(names))
    assert torch.equal(method.classify(pixels, names), loaded.classify(pixels, names))


def test_word_vectors_from_a_file(tiny_backbone: Backbone, tmp_path: Path) -> None:
    words = ["cat", "hot", "air", "balloon", "dog", "sea", "turtle", "qwertyuiop", "horse"]
    file = tmp_path / "vectors.txt"
    draw = torch.randn(len(words), 4, generator=seeded(0)).tolist()
    file.write_text("".join(f"{w} {' '.join(map(str, v))}\n" for w, v in zip(words, draw, strict=True)))
    config = replace(QUICK, **official.SETTINGS, graph="none", word_vectors=str(file))
    method, _ = fitted(tiny_backbone, config)
    assert method.model.vectors.shape == (len(CLASSES), 4)
    cat = F.normalize(torch.tensor(draw[0]), dim=0)
    torch.testing.assert_close(method.model.vectors[0], cat)


def test_reading_word_vectors(tmp_path: Path) -> None:
    file = tmp_path / "vectors.txt"
    file.write_text("cat 1 0\nsea 0 2\nturtle 4 0\nunused 9 9\n", encoding="utf-8")
    vectors = official.read_word_vectors(file, ["cat", "sea_turtle", "Sea-Cat"])
    assert vectors.tolist() == [[1, 0], [2, 1], [0.5, 1]]
    with pytest.raises(WordNetError, match="no vector for 'dog'"):
        official.read_word_vectors(file, ["cat", "dog"])
    with pytest.raises(WordNetError, match="cannot be read"):
        official.read_word_vectors(tmp_path / "none.txt", ["cat"])
    file.write_text("cat one two\n", encoding="utf-8")
    with pytest.raises(WordNetError, match="cannot be read"):
        official.read_word_vectors(file, ["cat"])


def test_nothing_before_fit(tiny_backbone: Backbone) -> None:
    with pytest.raises(RuntimeError, match="call fit"):
        SreClip(tiny_backbone).encode_classes(["cat"])
