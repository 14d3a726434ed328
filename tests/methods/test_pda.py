"""PDA: banks, attention and logits against naive loops, coupled prompts, the loss of both branches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from methods.parts.backbone import Backbone
from methods.pda import PDA, bank, guided, queries_keys_values
from tests.methods.test_baselines import NAMES, Toy, quiet, task


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20), st.booleans()), min_size=1, max_size=25),
    st.integers(1, 4),
    st.sampled_from(["left_out", "zeros"]),
)
def test_a_bank_has_the_mean_of_the_surest_images(images: list[Any], slots: int, rows: Any) -> None:
    features = torch.arange(float(len(images) * 2)).view(-1, 2)
    classes, confidence, eligible = (torch.tensor([one[part] for one in images]) for part in range(3))
    found = bank(features, classes, confidence.float(), eligible, 4, slots, rows)
    expected = []
    for number in range(4):
        of_class = [n for n, one in enumerate(images) if one[0] == number and one[2]]
        best = sorted(of_class, key=lambda n: -images[n][1])[:slots]
        divisor = slots if rows == "zeros" else len(best)
        if rows == "zeros" or best:
            expected.append([sum(float(features[n, side]) for n in best) / divisor for side in range(2)])
    torch.testing.assert_close(found, torch.tensor(expected).reshape(-1, 2))


def ift(wide: int = 6, narrow: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    parts = {}
    for name, out, into in (("1", narrow, wide), ("2", narrow, narrow), ("3", 3 * wide, narrow), ("post", wide, wide)):
        parts[f"ift.{name}.weight"] = torch.randn(out, into, generator=generator)
        parts[f"ift.{name}.bias"] = torch.randn(out, generator=generator)
    for number in (1, 2):
        for part, start in (("weight", 1.2), ("bias", 0.3), ("mean", 0.1), ("var", 2.0)):
            parts[f"ift.norm{number}.{part}"] = torch.full((narrow,), start)
    return parts


def stock_network(parts: dict[str, Tensor]) -> nn.Sequential:
    """The network that makes queries, keys and values, of torch's layers."""
    layers: list[nn.Module] = []
    for name in "123":
        weight = parts[f"ift.{name}.weight"]
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": parts[f"ift.{name}.bias"]})
        layers.append(linear)
        if name != "3":
            norm = nn.BatchNorm1d(weight.shape[0])
            for mine, theirs in (
                ("weight", "weight"),
                ("bias", "bias"),
                ("mean", "running_mean"),
                ("var", "running_var"),
            ):
                getattr(norm, theirs).data.copy_(parts[f"ift.norm{name}.{mine}"])
            layers += [norm, nn.ReLU()]
    return nn.Sequential(*layers)


def test_queries_keys_and_values_lie_side_by_side() -> None:
    parts, rows = ift(), torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
    network = stock_network(parts)
    for training in (True, True, False):
        network.train(training)
        with torch.no_grad():
            expected = network(rows)
        found = queries_keys_values(rows, parts, training=training)
        for number, one in enumerate(found):
            torch.testing.assert_close(one, expected[:, number::3])
    assert isinstance(network[1], nn.BatchNorm1d)
    torch.testing.assert_close(parts["ift.norm1.mean"], network[1].running_mean)
    torch.testing.assert_close(parts["ift.norm1.var"], network[1].running_var)
    assert all(one.isfinite().all() for one in queries_keys_values(rows[:1], parts, training=True))


def test_a_guided_feature_is_a_loop_over_the_banks_rows() -> None:
    parts, generator = ift(), torch.Generator().manual_seed(4)
    images, source, target = (torch.randn(count, 6, generator=generator) for count in (4, 3, 2))
    found = guided(images, [source, target, torch.zeros(0, 6)], parts, scale=0.1, training=False)
    network = stock_network(parts).eval()
    post, shift = parts["ift.post.weight"].tolist(), parts["ift.post.bias"].tolist()
    with torch.no_grad():
        of_images = network(images).tolist()
        for got, rows in zip(found, (source, target, None), strict=True):
            of_rows = [] if rows is None else network(rows).tolist()
            for number, image in enumerate(images.tolist()):
                query, mixed = of_images[number][0::3], [0.0] * 6
                scores = [math.exp(0.1 * sum(a * b for a, b in zip(query, row[1::3], strict=True))) for row in of_rows]
                for score, row in zip(scores, of_rows, strict=True):
                    mixed = [m + score / sum(scores) * v for m, v in zip(mixed, row[2::3], strict=True)]
                expected = [
                    x + sum(w * m for w, m in zip(weights, mixed, strict=True)) + b
                    for x, weights, b in zip(image, post, shift, strict=True)
                ]
                torch.testing.assert_close(got[number], torch.tensor(expected), rtol=1e-4, atol=1e-4)


def fitted(backbone: Backbone, data: Any = None, **changes: Any) -> PDA:
    config = {"steps": 3, "batch_size": 12, "learning_rate": 0.05, "coupled": 1, "augment": False, **changes}
    method = PDA(backbone, PDA.Config(**config))
    method.fit(task() if data is None else data, seed=0, log=quiet)
    return method


def adaptation() -> Any:
    labels = torch.arange(4).repeat(4)
    return task(domains=1, target=Toy(labels, torch.full_like(labels, 2)))


def test_the_banks_are_of_source_and_target(tiny_backbone: Backbone) -> None:
    data = adaptation()
    texts = tiny_backbone.encode_texts([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    frozen = tiny_backbone.encode_images(tiny_backbone.normalize(data.images.all))
    guess = (F.normalize(frozen, dim=1) @ F.normalize(texts, dim=1).T).argmax(1)
    data.labels = torch.where(torch.arange(16) % 2 == 0, guess, data.labels)  # CLIP is right in half of the images
    banks = fitted(tiny_backbone, data, slots=2).tensors()
    assert len(banks["bank.source"]) > 0
    for name, images in (("bank.source", data.images.all), ("bank.target", data.target.all)):
        features = F.normalize(tiny_backbone.encode_images(tiny_backbone.normalize(images)), dim=1)
        shares = (tiny_backbone.logit_scale * features @ F.normalize(texts, dim=1).T).softmax(1)
        rows = []
        for number in range(5):
            sure = [n for n in range(16) if int(shares[n].argmax()) == number]
            if name == "bank.source":
                sure = [n for n in sure if int(data.labels[n]) == number]
            best = sorted(sure, key=lambda n: -float(shares[n].max()))[:2]
            if best:
                rows.append(torch.stack([features[n] for n in best]).mean(0))
        torch.testing.assert_close(banks[name], torch.stack(rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize("coupled", [0, 1, 2])
def test_the_first_vision_prompts_are_maps_of_the_texts(coupled: int, tiny_backbone: Backbone) -> None:
    method = fitted(tiny_backbone, coupled=coupled)
    learned, found = method.tensors(), method.vision_prompts()
    text = torch.cat([learned["context"][None], learned["deep_context"]])
    assert found.shape == (2, 2, 32)
    for block in range(2):
        if block < coupled:
            expected = text[block] @ learned["coupling.weight"][block].T + learned["coupling.bias"][block]
        else:
            expected = learned["prompts"][block - coupled]
        torch.testing.assert_close(found[block].detach(), expected)
    assert ("prompts" in learned) == (coupled < 2)


def test_prediction_adds_half_of_the_aligned_logits(tiny_backbone: Backbone) -> None:
    data = adaptation()
    method = fitted(tiny_backbone, data)
    pixels = data.images.pixels(torch.arange(4))
    images, texts = method.encode_images(pixels), method.encode_classes(NAMES)
    learned = method.tensors()
    both = guided(images, [learned["bank.source"], learned["bank.target"]], learned, scale=0.1, training=False)
    scale = tiny_backbone.logit_scale
    aligned = sum(0.1 * scale * F.normalize(one, dim=1) @ texts.T for one in both)
    torch.testing.assert_close(
        method.classify(pixels, NAMES), scale * images @ texts.T + 0.5 * aligned, rtol=1e-4, atol=1e-4
    )
    base = fitted(tiny_backbone, data, align=False)
    expected = scale * base.encode_images(pixels) @ base.encode_classes(NAMES).T
    torch.testing.assert_close(base.classify(pixels, NAMES), expected, rtol=1e-4, atol=1e-4)
    assert not any("ift" in name or "bank" in name for name in base.tensors())


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_the_first_loss_has_four_parts(threshold: float, tiny_backbone: Backbone) -> None:
    data = adaptation()
    changes: dict[str, Any] = {
        "steps": 1,
        "batch_size": 16,
        "threshold": threshold,
        "learning_rate": 0.0,
        "warmup_rate": 0.0,
    }
    method = PDA(tiny_backbone, PDA.Config(**changes, augment=False))
    report = method.fit(data, seed=0, log=quiet)
    learned = method.tensors()
    texts, scale = method.encode_classes(NAMES), tiny_backbone.logit_scale
    prompts = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
    zero_shot = F.normalize(tiny_backbone.encode_texts(prompts), dim=1)
    frozen = F.normalize(tiny_backbone.encode_images(tiny_backbone.normalize(data.target.all)), dim=1)
    sure, guess = (scale * frozen @ zero_shot.T).softmax(1).max(1)
    total = 0.0
    for pixels, labels, counts in (
        (data.images.all, data.labels, torch.ones(16)),
        (data.target.all, guess, (sure >= threshold).float()),
    ):
        images = method.encode_images(pixels)
        both = guided(images, [learned["bank.source"], learned["bank.target"]], learned, scale=0.1, training=True)
        for logits in (scale * images @ texts.T, sum(0.1 * scale * F.normalize(one, dim=1) @ texts.T for one in both)):
            losses = F.cross_entropy(logits, labels, reduction="none") * counts
            total += float(losses.sum() / counts.sum().clamp(min=1))
    assert report.losses[0]["loss"] == pytest.approx(total, rel=1e-3)


def test_text_prompts_start_as_words_or_as_noise(tiny_backbone: Backbone) -> None:
    words, noise = (
        PDA(tiny_backbone, PDA.Config(start=start)).build(0)["context"].detach() for start in ("words", "noise")
    )
    ids = torch.tensor(tiny_backbone.token_ids("a photo of a")[:2])
    torch.testing.assert_close(words, tiny_backbone.embed_tokens(ids))
    assert not torch.allclose(words, noise)
    assert float(noise.std()) == pytest.approx(0.02, rel=0.3)
