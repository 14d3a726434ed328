"""AD-CLIP: its equations against loops written here, and that it trains, saves and answers as promised."""

import dataclasses
import inspect
import itertools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig

import methods.ad_clip as ad_clip
from methods.ad_clip import AdClip, AdClipConfig, VisionFeatures
from methods.interface import FitReport, TrainingData, WithheldError
from methods.official import ad_clip as official
from methods.parts.backbone import Backbone, BackboneError
from methods.parts.layerwise import layerwise_linear
from methods.parts.prompts import PromptTemplate, class_text, encode_prompts
from tests.support.images import InMemoryImages

CLASSES = ("cat", "hot_air_balloon", "dog", "sea_turtle")
DOMAINS = ("clipart", "sketch", "icon")
UNSEEN = ("horse", "alarm_clock")
QUICK: dict[str, Any] = {"steps": 3, "batch_size": 4, "crop": 1.0, "flip": False, "anchors": 5}


def drawn(cells: Sequence[tuple[int, int]], seed: int) -> Tensor:
    """A pattern for each class, a tint for each domain, some noise: images of (domain, class) cells."""
    fixed, noise = torch.Generator().manual_seed(5), torch.Generator().manual_seed(seed)
    patterns, tints = torch.rand(4, 3, 32, 32, generator=fixed), torch.rand(4, 3, 1, 1, generator=fixed)
    grain = torch.rand(len(cells), 3, 32, 32, generator=noise)
    return torch.stack([0.6 * patterns[c] + 0.2 * tints[d] + 0.2 * grain[i] for i, (d, c) in enumerate(cells)])


def task(*, domains: int = 3, each: int = 2, target: bool = False, **extra: Any) -> TrainingData:
    """``domains`` labelled domains; with ``target`` also unlabelled images of a fourth."""
    cells = [(d, c) for d in range(domains) for c in range(4) for _ in range(each)]
    return TrainingData(
        **{
            "protocol": "test",
            "images": InMemoryImages(drawn(cells, 1)),
            "labels": torch.tensor([c for _, c in cells]),
            "domains": torch.tensor([d for d, _ in cells]),
            "class_names": CLASSES,
            "domain_names": DOMAINS[:domains],
            "target": InMemoryImages(drawn([(3, c) for c in range(4) for _ in range(2)], 2)) if target else None,
            **extra,
        }
    )


def quiet(**numbers: object) -> None:
    """A log that keeps nothing."""


def fitted(backbone: Backbone, data: TrainingData | None = None, *, seed: int = 0, **changes: Any) -> AdClip:
    method = AdClip(backbone, AdClipConfig(**{**QUICK, **changes}))
    method.fit(data or task(), seed=seed, log=quiet)
    return method


def images(count: int = 5, seed: int = 7) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def views(
    backbone: Backbone, source: int = 3, target: int = 4, layers: int = 0
) -> tuple[VisionFeatures, VisionFeatures]:
    both = VisionFeatures.extract(backbone, backbone.normalize(images(source + target)), layers)
    return both[torch.arange(source)], both[torch.arange(source, source + target)]


# --- the equations, image by image and layer by layer ------------------------------------------------------------


def domain_tokens_by_hand(method: AdClip, view: VisionFeatures, image: int) -> Tensor:
    """P_v: [n, v]."""
    rows = []
    for layer in range(method.projectors.layers):
        mu, sigma = view.mu[image, layer], view.sigma[image, layer]
        style = torch.cat([mu, sigma]) if method.config.domain_input == "concat" else (mu + sigma) / 2
        one, two = method.projectors.domain.linear1, method.projectors.domain.linear2
        hidden = one.weight[layer] @ style + one.bias[layer]
        if method.config.domain_projector == "mlp":
            hidden = hidden.clamp(min=0)
        rows.append(two.weight[layer] @ hidden + two.bias[layer])
    return torch.stack(rows)


def style_tokens_by_hand(method: AdClip, view: VisionFeatures, image: int) -> Tensor:
    """f_smn: [n, v]."""
    rows = []
    for layer in range(method.projectors.layers):
        style = torch.cat([view.mu[image, layer], view.sigma[image, layer]])
        if method.config.style_input == "neighbours":
            style = torch.stack([(style[2 * j] + style[2 * j + 1]) / 2 for j in range(len(style) // 2)])
        one, two = method.projectors.style.linear1, method.projectors.style.linear2
        hidden = (one.weight[layer] @ style + one.bias[layer]).clamp(min=0)
        rows.append(two.weight[layer] @ hidden + two.bias[layer])
    return torch.stack(rows)


def image_tokens_by_hand(method: AdClip, view: VisionFeatures, image: int) -> Tensor:
    """P_c: [J, v]."""
    content, rows = method.projectors.content, []
    for j in range(method.config.image_tokens):
        mix = 0 if method.config.shared_mix else j
        token = content.mix_bias[mix].expand(method.backbone.text_width).clone()
        for layer in range(method.projectors.layers):
            projected = content.linear.weight[layer] @ view.mu[image, layer] + content.linear.bias[layer]
            token = token + content.mix_weight[mix, layer] * projected
        rows.append(token)
    return torch.stack(rows)


def text_by_hand(backbone: Backbone, context: Tensor, name: str) -> Tensor:
    """``[SOS ; context ; name . EOT]`` through the stock text tower, normalised: [E]."""
    words = [*backbone.token_ids(f"{class_text(name)}."), backbone.end_id]
    embed = backbone.model.text_model.embeddings.token_embedding
    start, rest = embed(torch.tensor([backbone.start_id])), embed(torch.tensor(words))
    tokens = torch.cat([start, context, rest])
    ids = torch.tensor([[backbone.start_id, *[1] * len(context), *words]])
    hook = embed.register_forward_hook(lambda *_: tokens[None])  # the stock model takes ids only
    try:
        features: Tensor = backbone.model.get_text_features(ids).pooler_output[0]
    finally:
        hook.remove()
    return features / features.norm()


def texts_by_hand(method: AdClip, contexts: Sequence[Tensor], names: Sequence[str]) -> Tensor:
    return torch.stack([torch.stack([text_by_hand(method.backbone, c, name) for name in names]) for c in contexts])


@pytest.mark.parametrize("variant", [{}, official.SETTINGS, {"domain_projector": "mlp", "layers": 1}])
def test_tokens(tiny_backbone: Backbone, variant: dict[str, Any]) -> None:
    method = AdClip(tiny_backbone, AdClipConfig(**variant))
    source, _ = views(tiny_backbone, layers=method.config.layers)
    projectors = method.projectors
    for tokens, by_hand in (
        (projectors.domain_tokens(source), domain_tokens_by_hand),
        (projectors.style_tokens(source), style_tokens_by_hand),
        (projectors.image_tokens(source), image_tokens_by_hand),
    ):
        expected = torch.stack([by_hand(method, source, image) for image in range(len(source))])
        torch.testing.assert_close(tokens, expected)
    first, second = projectors.image_tokens(source)[:, :2].unbind(dim=1)
    assert (first == second).all() == method.config.shared_mix


def test_a_view_is_what_clip_sees(tiny_backbone: Backbone) -> None:
    pixels = tiny_backbone.normalize(images(3))
    got = VisionFeatures.extract(tiny_backbone, pixels)
    model = tiny_backbone.model.vision_model
    states = model(pixels, output_hidden_states=True).hidden_states[1:]
    for layer, state in enumerate(states):
        for image in range(3):
            for channel in (0, 7, 31):
                values = state[image, :, channel]
                torch.testing.assert_close(got.mu[image, layer, channel], values.mean())
                torch.testing.assert_close(got.sigma[image, layer, channel], values.std(correction=0))
    torch.testing.assert_close(got.features, tiny_backbone.model.get_image_features(pixels).pooler_output)
    last = VisionFeatures.extract(tiny_backbone, pixels, layers=1)
    assert torch.equal(last.mu, got.mu[:, 1:])


def contexts_by_hand(
    method: AdClip, source: VisionFeatures, target: VisionFeatures
) -> tuple[list[Tensor], list[Tensor]]:
    """``[source-domain tokens ; target-domain tokens ; image tokens]`` of every image of both halves."""
    domain = [[domain_tokens_by_hand(method, v, i) for i in range(len(v))] for v in (source, target)]
    means = [sum(tokens[1:], tokens[0]) / len(tokens) for tokens in domain]
    contexts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for half, view in enumerate((source, target)):
        for i in range(len(view)):
            if method.config.pairing == "item":
                pair = [domain[0][i], domain[1][i]]
            else:
                pair = [domain[0][i] if half == 0 else means[0], domain[1][i] if half == 1 else means[1]]
            contexts[half].append(torch.cat([*pair, image_tokens_by_hand(method, view, i)]))
    return contexts


@pytest.mark.parametrize("variant", [{}, official.SETTINGS, {"smn_input": "source"}, {"pairing": "item"}])
def test_losses(tiny_backbone: Backbone, variant: dict[str, Any]) -> None:
    method = AdClip(tiny_backbone, AdClipConfig(**variant))
    source, target = views(tiny_backbone, 3, 3 if method.config.pairing == "item" else 4)
    labels = torch.tensor([2, 0, 3])
    out = method.losses(source, target, labels, method.prompts(CLASSES))

    contexts = contexts_by_hand(method, source, target)
    texts = [texts_by_hand(method, half, CLASSES) for half in contexts]
    torch.testing.assert_close(out.source.texts, texts[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.target.texts, texts[1], rtol=1e-5, atol=1e-5)
    scale = float(tiny_backbone.model.logit_scale.exp())
    logits = [
        torch.stack([scale * (F.normalize(v.features[i], dim=0) @ t[i].T) for i in range(len(v))])
        for v, t in zip((source, target), texts, strict=True)
    ]
    ce = -sum(logits[0][i].log_softmax(0)[labels[i]] for i in range(3)) / 3
    posteriors = logits[1].exp() / logits[1].exp().sum(dim=1, keepdim=True)
    if method.config.entropy == "batch_normalised":
        posteriors = posteriors / posteriors.square().sum(dim=0).sqrt()
    entropy = -(posteriors * posteriors.log()).sum() / len(target)

    mapped = target if method.config.smn_input == "target" else source
    own = [domain_tokens_by_hand(method, source, i) for i in range(len(source))]
    guess = [style_tokens_by_hand(method, mapped, i) for i in range(len(mapped))]
    met = [list(half.unbind()) for half in texts]
    if method.config.pairing == "mean":
        own, guess = [torch.stack(own).mean(0)], [torch.stack(guess).mean(0)]
        met = [[half.mean(dim=0)] for half in texts]
    smn = sum((a - b).square().mean() for a, b in zip(own, guess, strict=True)) / len(own)
    kl = torch.zeros(())
    for s, t in zip(*met, strict=True):  # [C, E] each: a distribution over classes for every channel
        for channel in range(tiny_backbone.embed_dim):
            p, q = t[:, channel].softmax(0), s[:, channel].softmax(0)
            kl = kl + (p * (p / q).log()).sum() / len(met[0])
    expected = {"ce": ce, "smn": smn, "entropy": entropy, "kl": kl}
    for term, value in expected.items():
        torch.testing.assert_close(out.terms[term], torch.as_tensor(value), rtol=2e-4, atol=1e-6, msg=term)
    total = ce + 0.1 * smn + 0.01 * entropy + kl
    torch.testing.assert_close(out.total, total, rtol=1e-4, atol=1e-6)


def test_what_inference_answers(tiny_backbone: Backbone) -> None:
    """Retrieval embedding, class embedding and logits, from prompts written out by hand."""
    method = fitted(tiny_backbone)
    pixels = images(3)
    with torch.no_grad():
        view = VisionFeatures.extract(tiny_backbone, tiny_backbone.normalize(pixels))

        def context(of: VisionFeatures, i: int) -> Tensor:
            mapped, own = style_tokens_by_hand(method, of, i), domain_tokens_by_hand(method, of, i)
            return torch.cat([mapped, own, image_tokens_by_hand(method, of, i)])

        scale = float(tiny_backbone.model.logit_scale.exp())
        embeddings, logits = [], []
        for i in range(3):
            image = F.normalize(view.features[i], dim=0)
            texts = texts_by_hand(method, [context(view, i)], CLASSES)[0]
            shares = (scale * texts @ image).softmax(0)
            embeddings.append(F.normalize(image + sum(p * t for p, t in zip(shares, texts, strict=True)), dim=0))
            logits.append(scale * texts_by_hand(method, [context(view, i)], UNSEEN)[0] @ image)
        assert method._anchors is not None
        anchors = [context(method._anchors, i) for i in range(len(method._anchors))]
        classes = F.normalize(texts_by_hand(method, anchors, UNSEEN).mean(dim=0), dim=-1)
    torch.testing.assert_close(method.encode_images(pixels), torch.stack(embeddings), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.classify(pixels, UNSEEN), torch.stack(logits), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(method.encode_classes(UNSEEN), classes, rtol=1e-4, atol=1e-5)


def test_test_tokens(tiny_backbone: Backbone) -> None:
    """``own`` puts P_v of the image in both places, as if it were source and target."""
    view, _ = views(tiny_backbone)
    method = AdClip(tiny_backbone, AdClipConfig(test_tokens="own"))
    n = tiny_backbone.vision_layers
    own = method.projectors.test_context(view)
    assert torch.equal(own[:, :n], own[:, n : 2 * n])
    mapped = AdClip(tiny_backbone).projectors.test_context(view)
    assert torch.equal(mapped[:, n:], own[:, n:])
    assert not torch.allclose(mapped[:, :n], own[:, :n])


def test_anchors_are_training_images(tiny_backbone: Backbone) -> None:
    data = task()
    few, all_of_them = fitted(tiny_backbone, data), fitted(tiny_backbone, data, anchors=1000)
    everything = VisionFeatures.extract(
        tiny_backbone, tiny_backbone.normalize(data.images.pixels(torch.arange(len(data.images))))
    )
    assert few._anchors is not None
    assert all_of_them._anchors is not None
    torch.testing.assert_close(all_of_them._anchors.mu, everything.mu)
    nearest = torch.cdist(few._anchors.mu.flatten(1), everything.mu.flatten(1)).topk(2, largest=False)
    assert len(few._anchors) == 5
    assert len(nearest.indices[:, 0].unique()) == 5
    assert (nearest.values[:, 0] < 0.1 * nearest.values[:, 1]).all()


# --- the learning rate and the pairs of a batch ----------------------------------------------------------------------


def test_schedule_of_the_paper(tiny_backbone: Backbone) -> None:
    method = AdClip(tiny_backbone)
    steps = 50 * 7
    rates = [method.learning_rate(step, steps) for step in range(steps)]
    assert rates[:7] == [1e-5] * 7
    for epoch in range(1, 50):
        expected = 0.005 * (1 + math.cos(math.pi * (epoch - 1) / 50))
        assert rates[7 * epoch : 7 * epoch + 7] == pytest.approx([expected] * 7)
    assert rates[7] == pytest.approx(0.01)
    assert rates[-1] < 1e-4
    short = [method.learning_rate(step, 20) for step in range(20)]
    assert short[0] == 1e-5
    assert short[-1] < 1e-3
    assert all(a > b for a, b in itertools.pairwise(short[1:]))
    per_iteration = AdClip(tiny_backbone, AdClipConfig(schedule="iteration"))
    assert per_iteration.learning_rate(51, steps) == pytest.approx(0.0, abs=1e-12)
    assert per_iteration.learning_rate(101, steps) == pytest.approx(0.01)


def test_steps(tiny_backbone: Backbone) -> None:
    data = task()  # 24 images
    report = AdClip(tiny_backbone, AdClipConfig(**{**QUICK, "steps": 0, "epochs": 2, "batch_size": 5}))
    assert report.fit(data, seed=0, log=quiet).steps == 2 * math.ceil(24 / 5)
    scores = iter(range(100))
    data = task(validate=lambda method: float(next(scores)))
    method = AdClip(tiny_backbone, AdClipConfig(**{**QUICK, "steps": 25, "image_tokens": 1}))
    out = method.fit(data, seed=0, log=quiet)
    assert out.steps == 25
    assert [entry["step"] for entry in out.validation] == [3, 6, 9, 12, 15, 18, 21, 24, 25]


def test_pairs_of_domains(tiny_backbone: Backbone) -> None:
    """Without target images the halves are of two different domains; every domain plays both parts."""
    data = task(each=5)
    method = AdClip(tiny_backbone, AdClipConfig(batch_size=6))
    pairs, seen = method._pairs(data, 0), set()
    for _ in range(60):
        source, target = next(pairs)
        assert len(source) == len(target) == 6
        (first,), (second,) = data.domains[source].unique().tolist(), data.domains[target].unique().tolist()
        assert first != second
        seen.add((first, second))
    assert len(seen) == 6


def test_only_domain_pairs_with_itself(tiny_backbone: Backbone) -> None:
    assert fitted(tiny_backbone, task(domains=1)).encode_images(images(2)).isfinite().all()


class Spied(Tensor):
    """Labels that remember which of them were read."""

    asked: set[int]

    def __getitem__(self, index: Any) -> Any:
        self.asked.update(index.tolist())
        return self.as_subclass(Tensor)[index]


def test_labels_of_the_second_half_are_not_read(tiny_backbone: Backbone) -> None:
    data = task()
    expected: set[int] = set()
    method = AdClip(tiny_backbone, AdClipConfig(**QUICK))
    pairs = method._pairs(data, 3)
    for _ in range(3):
        expected.update(next(pairs)[0].tolist())
    data.labels = data.labels.as_subclass(Spied)
    data.labels.asked = set()
    method.fit(data, seed=3, log=quiet)
    assert data.labels.asked == expected


def test_withheld_target_is_not_asked_for(tiny_backbone: Backbone) -> None:
    data = task()
    with pytest.raises(WithheldError):
        _ = data.target
    assert fitted(tiny_backbone, data).class_names == CLASSES  # would have raised


@pytest.mark.parametrize("pairing", ["mean", "item"])
def test_target_images_are_the_second_half(tiny_backbone: Backbone, pairing: Literal["mean", "item"]) -> None:
    data = task(domains=1, target=True, each=3)  # 12 source, 8 target images
    method = AdClip(tiny_backbone, AdClipConfig(batch_size=10, pairing=pairing))
    source, target = next(method._pairs(data, 0))
    assert (len(source), len(target)) == ((10, 8) if pairing == "mean" else (8, 8))
    other = task(domains=1, target=True, each=3)
    other._target = InMemoryImages(1 - other.target.pixels(torch.arange(8)))
    one, two = (fitted(tiny_backbone, d, steps=2, pairing=pairing) for d in (data, other))
    assert not torch.allclose(one.encode_images(images(2)), two.encode_images(images(2)))


def test_classes_without_images(tiny_backbone: Backbone) -> None:
    """DAZSL: the names of unseen classes are known, and count in the embedding."""
    names = (*CLASSES, *UNSEEN)
    method = fitted(tiny_backbone, task(domains=1, target=True, class_names=names))
    assert method.classify(images(3), names).shape == (3, 6)
    assert method.encode_classes([UNSEEN[1]]).shape == (1, tiny_backbone.embed_dim)
    fewer = fitted(tiny_backbone, task(domains=1, target=True))
    fewer.load_tensors(method.tensors(), fewer.facts())
    assert not torch.allclose(fewer.encode_images(images(3)), method.encode_images(images(3)), atol=1e-4)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [False, True])
def test_the_loss_falls(tiny_backbone: Backbone, target: bool) -> None:
    data = task(domains=1 if target else 3, target=target)
    method = AdClip(tiny_backbone, AdClipConfig(**{**QUICK, "steps": 60, "batch_size": 8}))
    report = method.fit(data, seed=0, log=quiet)
    losses = [float(entry["loss"]) for entry in report.losses]
    assert sum(losses[-5:]) < 0.5 * sum(losses[1:6])
    every = torch.arange(len(data.images))
    right = method.classify(data.images.pixels(every), CLASSES).argmax(dim=1) == data.labels
    assert right.float().mean() > 0.9
    assert report.trainable_parameters == sum(p.numel() for p in method.projectors.parameters())


def features(method: AdClip) -> list[Tensor]:
    return [method.encode_images(images()), method.encode_classes(UNSEEN), method.classify(images(2), UNSEEN)]


def test_the_seed_decides_every_bit(tiny_backbone: Backbone) -> None:
    augmented: dict[str, Any] = {"crop": 0.5, "flip": True}
    state = torch.get_rng_state()
    first, again, other = (fitted(tiny_backbone, seed=seed, **augmented) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(features(first), features(again), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(features(first), features(other), strict=True))


def test_the_backbone_stays_as_it_is(tiny_backbone: Backbone) -> None:
    before = tiny_backbone.weights_hash
    fitted(tiny_backbone)
    assert tiny_backbone.weights_hash == before
    assert not any(p.requires_grad for p in tiny_backbone.model.parameters())


def test_bf16_stays_close(tiny_folder: Path, tiny_backbone: Backbone) -> None:
    half = fitted(Backbone.load(tiny_folder, precision="bf16"))
    assert half.encode_images(images()).dtype == torch.float32
    same = AdClip(tiny_backbone, half.config)
    same.load_tensors(half.tensors(), half.facts())
    assert F.cosine_similarity(half.encode_images(images()), same.encode_images(images())).min() > 0.99
    assert F.cosine_similarity(half.encode_classes(UNSEEN), same.encode_classes(UNSEEN)).min() > 0.99


@pytest.mark.parametrize("threads", [1, 2])
def test_save_and_load(tiny_backbone: Backbone, tmp_path: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    method = fitted(tiny_backbone, image_tokens=2, layers=1)
    method.save(tmp_path / "model")
    loaded = AdClip.load(tmp_path / "model", tiny_backbone)
    assert isinstance(loaded, AdClip)
    assert loaded.config == method.config
    assert all(torch.equal(a, b) for a, b in zip(features(method), features(loaded), strict=True))
    weights = sum(p.numel() for p in tiny_backbone.model.parameters())
    assert method.total_parameters() == weights + sum(p.numel() for p in method.projectors.parameters())


def test_selection_puts_the_best_weights_back(tiny_backbone: Backbone) -> None:
    kept: list[Tensor] = []

    def validate(method: Any) -> float:
        kept.append(method.encode_images(images()))
        return -abs(len(kept) - 2)

    method = AdClip(tiny_backbone, AdClipConfig(**{**QUICK, "steps": 4, "validate_every": 1}))
    report: FitReport = method.fit(task(validate=validate), seed=0, log=quiet)
    assert report.selected_step == 2
    assert torch.equal(method.encode_images(images()), kept[1])
    assert not torch.equal(kept[1], kept[3])


def test_an_embedding_is_a_function_of_its_image(tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    method = fitted(tiny_backbone)
    together = [method.encode_images(images(6)), method.classify(images(6), CLASSES)]
    for i in range(6):
        torch.testing.assert_close(method.encode_images(images(6)[i : i + 1])[0], together[0][i])
        torch.testing.assert_close(method.classify(images(6)[i : i + 1], CLASSES)[0], together[1][i])
    mates = torch.cat([images(6)[:1], images(5, seed=9)])
    torch.testing.assert_close(method.encode_images(mates)[0], together[0][0])
    monkeypatch.setattr(ad_clip, "PROMPTS_PER_PASS", 3)  # fewer than the classes: one image, three classes at a time
    torch.testing.assert_close(method.encode_images(images(6)), together[0])
    torch.testing.assert_close(method.classify(images(6), CLASSES), together[1])


@pytest.mark.parametrize(
    "name",
    [*(f"variant {name}" for name in AdClip.variants), *AdClip.ablations],
)
@pytest.mark.parametrize("target", [False, True])
def test_every_variant_and_ablation_runs(tiny_backbone: Backbone, name: str, target: bool) -> None:
    changes = AdClip.variants[name.split()[1]] if name.startswith("variant") else AdClip.ablations[name]
    data = task(domains=1 if target else 3, target=target)
    method = fitted(tiny_backbone, data, **{"steps": 2, **changes})
    start = AdClip(tiny_backbone, method.config)
    start.projectors = ad_clip.Projectors(tiny_backbone, method.config, ad_clip.seeded(0, ad_clip._INIT))
    moved = {
        key for key, value in method.projectors.state_dict().items()
        if not torch.allclose(value, start.projectors.state_dict()[key], rtol=0, atol=1e-7)
    }  # fmt: skip
    still = {"no_domain_tokens": ("domain", "style"), "no_image_tokens": ("content",), "no_smn": ("style",)}
    still["variant official_resnet"] = ("domain.linear1", "style.linear1", "content.linear")
    expected = {key for key in method.projectors.state_dict() if not key.startswith(still.get(name, ("-",)))}
    assert moved <= expected
    assert len(moved) >= len(expected) - 1  # the mix's bias has no gradient but weight decay's
    for out in features(method):
        assert out.isfinite().all()
    assert method.encode_images(images()).norm(dim=-1).allclose(torch.ones(5))
    assert method.projectors.context_tokens == method.prompts(CLASSES).context


# --- the fast path ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [{}, official.SETTINGS])
def test_fast_and_plain_path_agree(tiny_backbone: Backbone, variant: dict[str, Any]) -> None:
    source, target = views(tiny_backbone, 3, 3)
    outs = []
    for fast in (True, False):
        method = AdClip(tiny_backbone, AdClipConfig(**variant, fast=fast))
        losses = method.losses(source, target, torch.tensor([0, 1, 2]), method.prompts(CLASSES))
        losses.total.backward()
        named = dict(method.projectors.named_parameters())
        gradients = [p.grad for name, p in named.items() if name != "content.mix_bias"]  # its gradient is zero: noise
        assert all(g is not None for g in gradients)
        outs.append([losses.total, losses.source.logits, losses.target.texts, *gradients])
    for ours, plain in zip(*outs, strict=True):
        assert ours is not None
        assert plain is not None
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5 * float(plain.detach().abs().max()))


def test_cached_views_train_alike(tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without augmentation the tower sees an image once; the views are those of the plain path."""
    data = task(domains=1, target=True)
    fast, plain = (AdClip(tiny_backbone, AdClipConfig(**QUICK, fast=fast, layers=1)) for fast in (True, False))
    index = torch.tensor([3, 0, 5])
    for images_of in (data.images, data.target):
        ours, theirs = (method._training_features(images_of, 0)(index, 0) for method in (fast, plain))
        for part in ("features", "mu", "sigma"):
            torch.testing.assert_close(getattr(ours, part), getattr(theirs, part), rtol=1e-5, atol=1e-5)
    view = fast._training_features(data.images, 0)
    monkeypatch.setattr(fast, "_extract", lambda pixels: pytest.fail("the tower ran again"))
    view(index, 1)


def test_augmented_views_differ_by_draw(tiny_backbone: Backbone) -> None:
    data, index = task(), torch.tensor([0, 1])
    view = AdClip(tiny_backbone)._training_features(data.images, 0)
    assert torch.equal(view(index, 0).mu, view(index, 0).mu)
    assert not torch.allclose(view(index, 0).mu, view(index, 1).mu)


def flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_the_text_side_does_an_eighth_of_the_work() -> None:
    """The text side of a training step with 65 classes, 28 learned tokens, a context of 77: products counted."""
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config={**sizes, "num_hidden_layers": 12, "image_size": 32, "patch_size": 16},
        text_config={**sizes, "num_hidden_layers": 4, "vocab_size": 100, "eos_token_id": 99},
        projection_dim=64,
    )
    backbone = Backbone.from_config(config, 0)
    lengths = [2, 2, 2, 3, 3, 4, 5] * 9 + [3, 8]  # name tokens and the full stop
    ids = torch.zeros(65, 77, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, 29 : 29 + length], ids[row, 29 + length] = 7, 99
    prompts = PromptTemplate.from_ids(backbone, ids, torch.arange(1, 29).expand(65, -1))
    context = torch.randn(2, 28, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def step(**path: Any) -> Callable[[], object]:
        return lambda: encode_prompts(backbone, prompts, context, **path).sum().backward()

    assert flops(step(shared_prefix=False, cut=False)) > 8 * flops(step())


# --- settings and errors ---------------------------------------------------------------------------------------------


def test_every_switch_has_its_row() -> None:
    fields = {field.name for field in dataclasses.fields(AdClipConfig)}
    switches = {row.switch for row in AdClip.card.deviations if row.switch}
    assert switches <= fields
    assert set(official.SETTINGS) <= switches
    assert all(row.switch or row.ours for row in AdClip.card.deviations)
    assert AdClipConfig.official() == AdClipConfig(**AdClip.variants["official"])
    assert all(getattr(AdClipConfig(), name) != value for name, value in official.SETTINGS.items())
    described = re.findall(r"^    (\w+): .* = .+  # .+$", inspect.getsource(AdClipConfig), flags=re.MULTILINE)
    assert [name for name in fields if name not in described] == []


def test_prompt_sizes_come_from_the_backbone(tiny_backbone: Backbone) -> None:
    assert AdClip(tiny_backbone).projectors.context_tokens == 2 * 2 + 4
    with pytest.raises(BackboneError, match=r"use fewer context tokens \(now 64\)"):
        AdClip(tiny_backbone, AdClipConfig(image_tokens=60)).prompts(CLASSES)


def test_unusable_settings_are_named(tiny_backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="leaves nothing to learn"):
        AdClipConfig(domain_tokens=False, image_tokens=0)
    with pytest.raises(ValueError, match="anchors below 1"):
        AdClipConfig(anchors=0)
    with pytest.raises(ValueError, match="layers 3 is more than the 2 vision blocks"):
        AdClip(tiny_backbone, AdClipConfig(layers=3))
    for ask in (lambda m: m.encode_images(images(1)), lambda m: m.encode_classes(UNSEEN)):
        with pytest.raises(RuntimeError, match="call fit or load"):
            ask(AdClip(tiny_backbone))


# --- layers of unequal widths (CLIP's ResNets) -----------------------------------------------------------------------


def test_maps_of_unequal_layers_read_their_own_width_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = layerwise_linear((2, 5, 3), 4, generator)
    assert sum(value.numel() for value in maps.parameters()) == (2 + 5 + 3) * 4 + 3 * 4
    inputs = torch.randn(6, 3, 5, generator=generator)
    out = maps(inputs)
    for layer, width in enumerate((2, 5, 3)):
        linear = maps.layers[layer]
        wanted = inputs[:, layer, :width] @ linear.weight[0].T + linear.bias[0]
        torch.testing.assert_close(out[:, layer], wanted)
    filled = inputs.clone()
    filled[:, 0, 2:], filled[:, 2, 3:] = 7.0, 7.0
    assert torch.equal(maps(filled), out)


def test_styles_of_unequal_layers_lie_at_the_front() -> None:
    mu, sigma = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    mu[0, 0, :2], sigma[0, 0, :2] = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    mu[0, 1], sigma[0, 1] = torch.tensor([5.0, 6.0, 7.0]), torch.tensor([8.0, 9.0, 10.0])
    style = ad_clip.VisionFeatures(torch.zeros(1, 4), mu, sigma).style((2, 3))
    assert style[0].tolist() == [[1.0, 2.0, 3.0, 4.0, 0.0, 0.0], [5.0, 6.0, 7.0, 8.0, 9.0, 10.0]]
