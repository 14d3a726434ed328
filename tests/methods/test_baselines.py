"""The trained baselines: maps and an adapter of features, context, visual prompts, parts of CLIP, all of it."""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model_state_dict
from torch import Tensor, nn
from torch.nn import functional as F

from methods.bitfit import BitFit
from methods.clip_adapter import ClipAdapter
from methods.coop import CoOp
from methods.full_finetune import FullFinetune
from methods.interface import Images, Method, MethodCard, NotApplicableError, TrainingData
from methods.linear_probe import LinearProbe
from methods.ln_tuning import LnTuning
from methods.lora import LoRA
from methods.metric_head import MetricHead, contrastive_terms
from methods.parts.backbone import Backbone, BackboneError
from methods.parts.prompts import PromptTemplate
from methods.training.batches import Partners
from methods.training.image_text import ImageTextConfig, ImageTextMethod, OwnClipMethod
from methods.vpt import VPTDeep, VPTShallow
from methods.zero_shot import ZeroShot
from tests.docs.test_documents import generator
from tests.support.golden import assert_golden, golden_set

BASELINES: dict[str, type[Any]] = {
    method.card.name: method
    for method in (CoOp, VPTShallow, VPTDeep, FullFinetune, LoRA, LinearProbe, MetricHead, BitFit, LnTuning)
}
BASELINES["clip_adapter"] = ClipAdapter
#: Learning rates at which the random tiny CLIP learns within some steps (the defaults are for a trained CLIP).
RATES = {"coop": 0.05, "vpt_shallow": 0.1, "vpt_deep": 0.1, "full_finetune": 2e-3, "lora": 2e-2}
RATES |= {"linear_probe": 5e-2, "metric_head": 5e-2, "bitfit": 5e-2, "ln_tuning": 5e-2}
RATES["clip_adapter"] = 5e-2
NAMES = ("cat", "sea_turtle", "t-shirt", "hot_air_balloon", "unseen dog")
DOMAINS = ("clipart", "flat", "sketch")
UNSEEN = NAMES.index("unseen dog")


class Toy(Images):
    """A colour for each class, dimmed by domain, with noise."""

    def __init__(self, labels: Tensor, domains: Tensor) -> None:
        colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.8, 0.8, 0.1], [0.5, 0.5, 0.5]])
        noise = torch.rand(len(labels), 3, 32, 32, generator=torch.Generator().manual_seed(7))
        plain = colours[labels] * (0.6 + 0.2 * domains[:, None])
        self.all = (0.8 * plain[:, :, None, None] + 0.2 * noise).clamp(0, 1)

    def __len__(self) -> int:
        return len(self.all)

    def pixels(self, index: Tensor) -> Tensor:
        return self.all[index]

    @property
    def content(self) -> Sequence[str]:
        return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in self.all]


class Target(Toy):
    """Target images that no baseline may use."""

    def pixels(self, index: Tensor) -> Tensor:
        raise AssertionError("a baseline read target images")


def task(*, domains: int = 3, **options: Any) -> TrainingData:
    """Four classes with images and one without, in some domains; the labels are in random order."""
    labels = torch.arange(4).repeat(4 * domains)[torch.randperm(16 * domains, generator=torch.Generator())]
    of_domain = torch.arange(domains).repeat_interleave(16)
    return TrainingData(
        protocol="toy",
        images=Toy(labels, of_domain),
        labels=labels,
        domains=of_domain,
        class_names=NAMES,
        domain_names=DOMAINS[:domains],
        **options,
    )


def quiet(**_: Any) -> None:
    """A log that stores nothing."""


def make(name: str, backbone: Backbone, **changes: Any) -> Any:
    """A baseline with a small budget."""
    method = BASELINES[name]
    small = {"steps": 3, "batch_size": 12, "learning_rate": RATES[name]}
    return method(backbone, method.Config(**{**small, **changes}))


def scores(method: Method, data: TrainingData) -> tuple[float, float]:
    """Accuracy and cross-entropy of the training images among the classes that have some."""
    logits = method.classify(data.images.pixels(torch.arange(len(data.images))), NAMES[:4])
    return float((logits.argmax(1) == data.labels).float().mean()), float(F.cross_entropy(logits, data.labels))


def weights(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in backbone.model.state_dict().items()}


each = pytest.mark.parametrize("name", BASELINES)


# --- what every baseline does ---


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "metric_head"])  # its loss knows no classes
def test_fits_its_training_classes(name: str, tiny_backbone: Backbone) -> None:
    data = task()
    method = make(name, tiny_backbone, steps=60, batch_size=24, augment=False)
    method.fit(data, seed=0, log=quiet)
    accuracy, loss = scores(method, data)
    start = make(name, tiny_backbone, steps=1, learning_rate=0.0, augment=False)
    start.fit(data, seed=0, log=quiet)
    assert loss < 0.7 * scores(start, data)[1]
    assert accuracy >= 0.95


@each
def test_save_and_load_give_equal_features(name: str, tiny_backbone: Backbone, tmp_path: Path) -> None:
    data = task()
    method = make(name, tiny_backbone)
    method.fit(data, seed=0, log=quiet)
    method.save(tmp_path / "model")
    loaded = BASELINES[name].load(tmp_path / "model", tiny_backbone)
    pixels = data.images.pixels(torch.arange(6))
    assert torch.equal(loaded.encode_images(pixels), method.encode_images(pixels))
    assert torch.equal(loaded.encode_raw(pixels), method.encode_raw(pixels))
    assert torch.equal(loaded.encode_classes(NAMES), method.encode_classes(NAMES))
    assert torch.equal(loaded.classify(pixels, NAMES), method.classify(pixels, NAMES))
    assert loaded.config == method.config
    other = make(name, tiny_backbone)
    other.fit(data, seed=1, log=quiet)
    assert not torch.equal(other.encode_classes(NAMES), method.encode_classes(NAMES)) or not torch.equal(
        other.encode_images(pixels), method.encode_images(pixels)
    )


@each
def test_refuses_a_checkpoint_that_does_not_fit(name: str, tiny_backbone: Backbone, tmp_path: Path) -> None:
    method = make(name, tiny_backbone)
    method.fit(task(), seed=0, log=quiet)
    changed = {**method.tensors(), "unknown": torch.zeros(2)}
    with pytest.raises(ValueError, match=f"{name}: the checkpoint's tensors do not fit"):
        make(name, tiny_backbone).load_tensors(changed, method.facts())


@each
@pytest.mark.parametrize("augmented", [True, False])
def test_a_seed_gives_the_same_bits(name: str, augmented: bool, tiny_backbone: Backbone) -> None:
    data = task()
    learned = []
    for seed, noise in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(noise)  # the global generator must not matter
        method = make(name, tiny_backbone, augment=augmented)
        report = method.fit(data, seed=seed, log=quiet)
        learned.append((method.tensors(), [entry["loss"] for entry in report.losses]))
    first, again, other = learned
    assert first[1] == again[1] != other[1]
    assert all(torch.equal(value, again[0][key]) for key, value in first[0].items())
    assert not all(torch.equal(value, other[0][key]) for key, value in first[0].items())


EXPECTED = {
    "coop": r"context",
    "vpt_shallow": r"prompts",
    "vpt_deep": r"(deep_)?prompts",
    "full_finetune": r"(vision_model\..*|visual_projection\.weight)",
    "lora": r"(vision|text)_model\..*\.self_attn\.(q|k|v|out)_proj\.lora_(A|B)\.weight",
    "linear_probe": r"map",
    "clip_adapter": r"image_(down|up)",
    "metric_head": r"map",
    "bitfit": r"vision_model\..*\.bias",
    "ln_tuning": r"vision_model\..*(layrnorm|layer_norm1|layer_norm2|post_layernorm)\.(weight|bias)",
}


@each
def test_trains_what_it_claims_and_nothing_else(name: str, tiny_backbone: Backbone) -> None:
    before, fresh = weights(tiny_backbone), tiny_backbone.weights_hash
    method = make(name, tiny_backbone, augment=False)
    starts: list[dict[str, Tensor]] = []
    gradients: list[set[str]] = []

    def note(**numbers: Any) -> None:
        if "loss" not in numbers:
            return
        trained = method.trainable()
        starts.append({key: value.detach().clone() for key, value in trained.items()})
        gradients.append({key for key, value in trained.items() if value.grad is not None and bool(value.grad.any())})
        own = {id(value) for value in trained.values()}
        for model in {id(b): b for b in (tiny_backbone, getattr(method, "clip", tiny_backbone))}.values():
            for key, value in model.model.named_parameters():
                assert id(value) in own or (value.grad is None and not value.requires_grad), key

    report = method.fit(task(), seed=0, log=note)
    trained = method.trainable()
    assert all(re.fullmatch(EXPECTED[name], key) for key in trained)
    never = set(trained) - set.union(*gradients)
    assert all(key.endswith("k_proj.bias") for key in never)  # a key bias has no gradient but rounding noise
    assert all(not torch.equal(value, starts[0][key]) for key, value in method.tensors().items() if key not in never)
    assert set(method.tensors()) == set(trained)
    assert report.trainable_parameters == sum(value.numel() for value in trained.values())
    assert report.steps == 3
    assert tiny_backbone.weights_hash == fresh
    assert all(torch.equal(value, before[key]) for key, value in tiny_backbone.model.state_dict().items())


def test_trains_all_of_the_claimed_parts(tiny_backbone: Backbone) -> None:
    counts = {}
    for name in BASELINES:
        method = make(name, tiny_backbone, steps=1)
        counts[name] = method.fit(task(), seed=0, log=quiet).trainable_parameters
    vision = sum(value.numel() for value in tiny_backbone.vision_parameters().values())
    assert counts == {
        "coop": 16 * 32,
        "vpt_shallow": 10 * 32,
        "vpt_deep": 2 * 10 * 32,
        "full_finetune": vision,
        "lora": 2 * 2 * 4 * 8 * (32 + 32),  # towers, blocks, maps, rank, in + out
        "linear_probe": 24 * 24,
        "clip_adapter": 2 * 24 * 6,
        "metric_head": 24 * 24,
        "bitfit": 2 * (4 * 32 + 64 + 32 + 2 * 32) + 2 * 32,  # blocks: attention, MLP, LayerNorms; LayerNorms around
        "ln_tuning": (2 * 2 + 2) * 2 * 32,
    }


@each
def test_an_embedding_does_not_depend_on_its_batch(name: str, tiny_backbone: Backbone) -> None:
    data = task()
    method = make(name, tiny_backbone)
    method.fit(data, seed=0, log=quiet)
    pixels = data.images.pixels(torch.arange(9))
    together = method.encode_images(pixels)
    alone = torch.cat([method.encode_images(one[None]) for one in pixels])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(9), rtol=0, atol=1e-5)
    torch.testing.assert_close(F.normalize(method.encode_raw(pixels)), together, rtol=0, atol=1e-6)


@each
def test_normalises_by_its_settings(name: str, tiny_backbone: Backbone) -> None:
    raw, normalised = task(), task()
    normalised.images.all = tiny_backbone.normalize(normalised.images.all, "imagenet")
    learned = []
    for data, statistics in ((raw, "imagenet"), (normalised, "none"), (raw, "clip")):
        method = make(name, tiny_backbone, augment=False, train_statistics=statistics, test_statistics="clip")
        method.fit(data, seed=0, log=quiet)
        learned.append(method)
    same, other = learned[1].tensors(), learned[2].tensors()
    assert all(torch.equal(value, same[key]) for key, value in learned[0].tensors().items())
    assert not all(torch.equal(value, other[key]) for key, value in learned[0].tensors().items())
    pixels = raw.images.pixels(torch.arange(3))
    method = make(name, tiny_backbone, augment=False, train_statistics="imagenet", test_statistics="none")
    method.fit(raw, seed=0, log=quiet)
    expected = learned[0].encode_images(pixels)
    assert torch.equal(method.encode_images(tiny_backbone.normalize(pixels)), expected)
    assert not torch.allclose(method.encode_images(pixels), expected, atol=1e-3)


@each
def test_encodes_any_class_name(name: str, tiny_backbone: Backbone) -> None:
    method = make(name, tiny_backbone)
    method.fit(task(), seed=0, log=quiet)
    names = [*NAMES, "a name never seen"]
    together = method.encode_classes(names)
    assert together.shape == (6, tiny_backbone.embed_dim)
    torch.testing.assert_close(together[[5, 0]], method.encode_classes([names[5], names[0]]), rtol=0, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(6), rtol=0, atol=1e-5)


@each
def test_does_not_read_target_images_nor_unlabelled_classes(name: str, tiny_backbone: Backbone) -> None:
    target = Target(torch.zeros(5, dtype=torch.long), torch.zeros(5, dtype=torch.long))
    shown = task(domains=1, target=target)
    hidden = task(domains=1)
    hidden.class_names = NAMES[:4]
    learned = []
    for data in (shown, hidden):
        method = make(name, tiny_backbone)
        method.fit(data, seed=0, log=quiet)
        learned.append(method.tensors())
    assert UNSEEN not in shown.labelled_classes
    assert all(torch.equal(value, learned[1][key]) for key, value in learned[0].items())


@each
def test_fast_and_plain_path_agree(name: str, tiny_backbone: Backbone) -> None:
    data = task()
    losses, features = [], []
    for plain in ({}, BASELINES[name].plain):
        method = make(name, tiny_backbone, augment=False, steps=4, **plain)
        report = method.fit(data, seed=0, log=quiet)
        losses.append([entry["loss"] for entry in report.losses])
        start = make(name, tiny_backbone, augment=False, learning_rate=0.0, steps=1, **plain)
        start.fit(data, seed=0, log=quiet)  # untrained: Adam's first steps magnify the last bits of a gradient
        images = start.encode_images(data.images.pixels(torch.arange(5)))
        features.append(torch.cat([images, start.encode_classes(NAMES)]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-5)
    torch.testing.assert_close(features[0], features[1], rtol=0, atol=1e-5)


@each
def test_keeps_the_weights_of_the_best_validation(name: str, tiny_backbone: Backbone) -> None:
    seen: list[dict[str, Tensor]] = []

    def validate(method: Method) -> float:
        seen.append({key: value.clone() for key, value in method.tensors().items()})
        return [0.1, 0.5, 0.4, 0.3, 0.2][len(seen) - 1]

    method = make(name, tiny_backbone, steps=10)
    report = method.fit(task(validate=validate), seed=0, log=quiet)
    assert (report.steps, report.selected_step) == (4, 2)  # ten validations in ten steps, stop after two without gain
    assert all(torch.equal(value, seen[1][key]) for key, value in method.tensors().items())


@each
def test_runs_its_epochs_without_a_step_budget(name: str, tiny_backbone: Backbone) -> None:
    scored = []

    def validate(method: Method) -> float:
        scored.append(1.0 * len(scored))
        return scored[-1]

    method = make(name, tiny_backbone, steps=0, epochs=2, batch_size=24)
    report = method.fit(task(validate=validate), seed=0, log=quiet)
    assert report.steps == 4  # 48 images, 24 a batch
    assert [entry["step"] for entry in report.validation] == [2, 4]


CHANGES = [
    pytest.param(name, change, id=f"{name}-{label}")
    for name, method in BASELINES.items()
    for label, change in {**method.variants, **method.ablations}.items()
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_variants_and_ablations_run_and_load(
    name: str, change: dict[str, Any], tiny_backbone: Backbone, tmp_path: Path
) -> None:
    method = make(name, tiny_backbone, steps=2, **change)
    report = method.fit(task(), seed=0, log=quiet)
    assert report.steps == 2
    default = make(name, tiny_backbone)
    default.fit(task(), seed=0, log=quiet)
    assert method.config != default.config
    method.save(tmp_path / "model")
    loaded = BASELINES[name].load(tmp_path / "model", tiny_backbone)
    pixels = task().images.pixels(torch.arange(3))
    assert torch.equal(loaded.classify(pixels, NAMES), method.classify(pixels, NAMES))


@each
def test_trains_in_bf16(name: str, tiny_backbone: Backbone, tiny_folder: Path) -> None:
    data, features = task(), []
    for backbone in (tiny_backbone, Backbone.load(tiny_folder, precision="bf16")):
        method = make(name, backbone, steps=2, learning_rate=1e-4)
        method.fit(data, seed=0, log=quiet)
        pixels = data.images.pixels(torch.arange(4))
        features.append(torch.cat([method.encode_images(pixels), method.encode_classes(NAMES)]))
        assert all(value.dtype == torch.float32 for value in (features[-1], *method.tensors().values()))
    assert F.cosine_similarity(*features).min() > 0.99
    assert not torch.equal(*features)


@each
def test_is_refused_before_it_is_fitted(name: str, tiny_backbone: Backbone) -> None:
    with pytest.raises(RuntimeError, match=f"{name} is not fitted: call fit or load first"):
        make(name, tiny_backbone).encode_images(torch.zeros(1, 3, 32, 32))


@each
def test_every_setting_is_documented(name: str) -> None:
    config = BASELINES[name].Config
    explained = {field for fields, text in generator().meanings(config) if text for field in fields}
    assert explained == {field.name for field in dataclasses.fields(config)}
    for deviation in BASELINES[name].card.deviations:
        assert deviation.ours or hasattr(config(), deviation.switch)


# --- a new baseline is a few lines ---


class OwnMap(ImageTextMethod):
    card = MethodCard("own_map", "", "", "", 0, "", trains="a map behind CLIP")
    Config = ImageTextConfig
    stage = "probe"
    frozen_images = True

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        return {"head": nn.Parameter(torch.eye(self.backbone.embed_dim, device=self.device))}

    def head(self, features: Tensor) -> Tensor:
        return features @ self.trainable()["head"].T


class NormTuning(OwnClipMethod):
    card = MethodCard("norm_tuning", "", "", "", 0, "", trains="the vision tower's LayerNorms")
    Config = ImageTextConfig
    stage = "norms"

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        self.copy = self.backbone.clone()
        return {name: value for name, value in self.copy.vision_parameters().items() if "norm" in name}


@pytest.mark.parametrize("new", [OwnMap, NormTuning])
def test_a_new_baseline_needs_only_what_it_trains(new: type[Any], tiny_backbone: Backbone, tmp_path: Path) -> None:
    data, features = task(), []
    before = weights(tiny_backbone)
    for fast in (True, False):
        method = new(tiny_backbone, new.Config(steps=20, batch_size=12, learning_rate=0.01, augment=False, fast=fast))
        report = method.fit(data, seed=0, log=quiet)
        assert report.losses[-1]["loss"] < report.losses[0]["loss"]
        features.append(method.encode_images(data.images.pixels(torch.arange(5))))
    torch.testing.assert_close(*features, rtol=0, atol=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in tiny_backbone.model.state_dict().items())
    method.save(tmp_path / "new")
    loaded = new.load(tmp_path / "new", tiny_backbone)
    assert torch.equal(loaded.encode_images(data.images.pixels(torch.arange(5))), features[1])


# --- each baseline's own equation ---


def test_coop_is_the_stock_text_tower_on_learned_context(tiny_backbone: Backbone) -> None:
    method = make("coop", tiny_backbone, context_tokens=3)
    method.fit(task(), seed=0, log=quiet)
    model, context = tiny_backbone.model, method.trainable()["context"]
    for name, got in zip(NAMES, method.encode_classes(NAMES), strict=True):
        words = tiny_backbone.token_ids(name.replace("_", " ") + ".")
        table = model.text_model.embeddings.token_embedding.weight
        sentence = torch.cat([table[[tiny_backbone.start_id]], context, table[[*words, tiny_backbone.end_id]]])[None]
        length = sentence.shape[1]
        hidden = sentence + model.text_model.embeddings.position_embedding.weight[:length]
        mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
        for block in model.text_model.encoder.layers:
            hidden = block(hidden, mask)
        feature = model.text_projection(model.text_model.final_layer_norm(hidden)[0, -1])
        torch.testing.assert_close(got, F.normalize(feature, dim=0), rtol=0, atol=1e-5)


def test_coop_leaves_images_to_clip(tiny_backbone: Backbone) -> None:
    data = task()
    method = make("coop", tiny_backbone)
    method.fit(data, seed=0, log=quiet)
    pixels = data.images.pixels(torch.arange(5))
    assert torch.equal(method.encode_images(pixels), ZeroShot(tiny_backbone).encode_images(pixels))
    moved = make("coop", tiny_backbone, train_projections=True)
    moved.fit(data, seed=0, log=quiet)
    assert not torch.allclose(moved.encode_images(pixels), method.encode_images(pixels), atol=1e-3)


@pytest.mark.parametrize("name", ["coop", "linear_probe", "metric_head", "clip_adapter"])
def test_frozen_images_are_read_once_where_none_is_augmented(name: str, tiny_backbone: Backbone) -> None:
    class Counting(Toy):
        read = 0

        def pixels(self, index: Tensor) -> Tensor:
            Counting.read += len(index)
            return super().pixels(index)

        @property
        def content(self) -> Sequence[str]:
            return [f"counted-{name}-{number}" for number in range(len(self))]

    data = task()
    data.images = Counting(data.labels, data.domains)
    make(name, tiny_backbone, steps=9).fit(data, seed=0, log=quiet)
    assert Counting.read == len(data.images)
    make(name, tiny_backbone, steps=9).fit(data, seed=1, log=quiet)
    assert Counting.read == len(data.images)
    make(name, tiny_backbone, steps=9, augment=True).fit(data, seed=1, log=quiet)
    again = Counting.read - len(data.images)
    assert again == 9 * 12 or (name == "metric_head" and 9 * 7 <= again <= 9 * 12)  # a partner may be an anchor too


def test_coop_names_a_class_that_is_too_long(tiny_backbone: Backbone) -> None:
    with pytest.raises(BackboneError, match="use fewer context tokens"):
        make("coop", tiny_backbone, context_tokens=62).fit(task(), seed=0, log=quiet)


@pytest.mark.parametrize("name", ["vpt_shallow", "vpt_deep"])
def test_vpt_is_the_stock_vision_tower_with_tokens_put_in(name: str, tiny_backbone: Backbone) -> None:
    method = make(name, tiny_backbone, prompt_tokens=3)
    method.fit(task(), seed=0, log=quiet)
    pixels = task().images.pixels(torch.arange(2))
    learned, vision = method.trainable(), tiny_backbone.model.vision_model
    for image, got in zip(tiny_backbone.normalize(pixels), method.encode_raw(pixels), strict=True):
        tokens = vision.embeddings(image[None])
        hidden = vision.pre_layrnorm(torch.cat([tokens[:, :1], learned["prompts"][None], tokens[:, 1:]], dim=1))
        for number, block in enumerate(vision.encoder.layers):
            if number > 0 and name == "vpt_deep":
                hidden = torch.cat([hidden[:, :1], learned["deep_prompts"][number - 1][None], hidden[:, 4:]], dim=1)
            hidden = block(hidden, None)
        feature = tiny_backbone.model.visual_projection(vision.post_layernorm(hidden[0, 0]))
        torch.testing.assert_close(got, feature, rtol=0, atol=1e-5)
    torch.testing.assert_close(method.encode_classes(NAMES), ZeroShot(tiny_backbone).encode_classes(NAMES))


def test_full_finetune_is_adam_on_the_stock_model(tiny_backbone: Backbone) -> None:
    data = task(domains=1)  # 16 images, one batch: all of them, whatever the order
    changes = {"weight_decay": 0.01, "learning_rate": 1e-2, "temperature": 0.5}
    method = make("full_finetune", tiny_backbone, steps=3, batch_size=16, augment=False, **changes)
    report = method.fit(data, seed=0, log=quiet)
    model = tiny_backbone.clone().model
    trained = [*model.vision_model.parameters(), *model.visual_projection.parameters()]
    adam = torch.optim.Adam([p.requires_grad_() for p in trained], lr=1e-2, weight_decay=0.01)
    with torch.no_grad():
        ids = tiny_backbone.tokenize([f"a photo of a {name.replace('_', ' ')}" for name in NAMES[:4]])
        texts = F.normalize(model.get_text_features(ids).pooler_output, dim=1)
    pixels = tiny_backbone.normalize(data.images.pixels(torch.arange(16)))
    for entry in report.losses:
        images = F.normalize(model.get_image_features(pixels).pooler_output, dim=1)
        loss = F.cross_entropy(images @ texts.T / 0.5, data.labels)
        assert entry["loss"] == pytest.approx(float(loss.detach()), abs=1e-4)
        adam.zero_grad()
        loss.backward()
        adam.step()


def test_full_finetune_official_trains_all_of_clip(tiny_backbone: Backbone) -> None:
    method = make("full_finetune", tiny_backbone, **FullFinetune.variants["official"])
    method.fit(task(), seed=0, log=quiet)
    assert set(method.tensors()) == set(dict(tiny_backbone.model.named_parameters()))
    assert method.logit_scale() != pytest.approx(tiny_backbone.logit_scale, rel=1e-4)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_lora_is_clip_with_changed_weights(tower: str, tiny_backbone: Backbone) -> None:
    method = make("lora", tiny_backbone, rank=3, alpha=12.0)
    method.fit(task(), seed=0, log=quiet)
    merged, learned = tiny_backbone.clone(), method.tensors()
    with torch.no_grad():
        for key, down in learned.items():
            if key.endswith("lora_A.weight"):
                up = learned[key.replace("lora_A", "lora_B")]
                assert down.shape == (3, 32) and up.shape == (32, 3) and bool(up.any())
                merged.model.get_parameter(key.replace(".lora_A", "")).add_(up @ down, alpha=12 / 3)
    pixels = task().images.pixels(torch.arange(4))
    clip = ZeroShot(merged)
    if tower == "vision":
        torch.testing.assert_close(method.encode_images(pixels), clip.encode_images(pixels), rtol=0, atol=1e-5)
    else:
        torch.testing.assert_close(method.encode_classes(NAMES), clip.encode_classes(NAMES), rtol=0, atol=1e-5)


def test_lora_starts_from_clip_and_uses_peft_names(tiny_backbone: Backbone) -> None:
    method = make("lora", tiny_backbone, steps=1, learning_rate=0.0)
    method.fit(task(), seed=0, log=quiet)
    pixels = task().images.pixels(torch.arange(4))
    torch.testing.assert_close(method.encode_images(pixels), ZeroShot(tiny_backbone).encode_images(pixels))
    torch.testing.assert_close(method.encode_classes(NAMES), ZeroShot(tiny_backbone).encode_classes(NAMES))
    assert set(method.tensors()) == set(get_peft_model_state_dict(method.clip.model, save_embedding_layers=False))


def frozen_features(backbone: Backbone, data: TrainingData) -> Tensor:
    """What the stock model makes of a task's images."""
    pixels = backbone.normalize(data.images.pixels(torch.arange(len(data.images))))
    with torch.no_grad():
        return backbone.model.get_image_features(pixels).pooler_output


def stock_texts(backbone: Backbone) -> Tensor:
    """What the stock model makes of the texts of the classes with images."""
    with torch.no_grad():
        ids = backbone.tokenize([f"a photo of a {name.replace('_', ' ')}" for name in NAMES[:4]])
        return backbone.model.get_text_features(ids).pooler_output


@pytest.mark.parametrize("classifier", ["texts", "trained"])
def test_linear_probe_is_adam_on_a_map_of_frozen_features(classifier: str, tiny_backbone: Backbone) -> None:
    data = task(domains=1)  # 16 images, one batch: all of them, whatever the order
    changes = {"learning_rate": 1e-2, "temperature": 0.5, "classifier": classifier}
    method = make("linear_probe", tiny_backbone, steps=4, batch_size=16, **changes)
    report = method.fit(data, seed=0, log=quiet)
    features, rows = frozen_features(tiny_backbone, data), F.normalize(stock_texts(tiny_backbone), dim=1)
    trained = [matrix := torch.eye(24).requires_grad_()]
    if classifier == "trained":
        trained.append(rows.requires_grad_())
    adam = torch.optim.Adam(trained, lr=1e-2)
    for entry in report.losses:
        loss = torch.zeros(())
        for feature, label in zip(features, data.labels.tolist(), strict=True):
            mapped = torch.stack([sum(w * f for w, f in zip(row, feature, strict=True)) for row in matrix])
            cosines = [mapped @ row / (mapped.square().sum() * row.square().sum()).sqrt() for row in rows]
            loss = loss - (cosines[label] / 0.5 - sum((cosine / 0.5).exp() for cosine in cosines).log()) / 16
        assert entry["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
        adam.zero_grad()
        loss.backward()
        adam.step()
    torch.testing.assert_close(method.encode_raw(data.images.pixels(torch.arange(16))), features @ matrix.T.detach())
    expected = (
        F.normalize(rows, dim=1) if classifier == "trained" else ZeroShot(tiny_backbone).encode_classes(NAMES[:4])
    )
    torch.testing.assert_close(method.encode_classes(NAMES[:4]), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(method.encode_classes(NAMES[4:]), ZeroShot(tiny_backbone).encode_classes(NAMES[4:]))


@pytest.mark.parametrize("name", ["linear_probe", "metric_head", "bitfit", "ln_tuning"])
def test_starts_from_clip(name: str, tiny_backbone: Backbone) -> None:
    method = make(name, tiny_backbone, steps=1, learning_rate=0.0)
    method.fit(task(), seed=0, log=quiet)
    pixels = task().images.pixels(torch.arange(4))
    torch.testing.assert_close(method.encode_images(pixels), ZeroShot(tiny_backbone).encode_images(pixels))
    torch.testing.assert_close(method.encode_classes(NAMES), ZeroShot(tiny_backbone).encode_classes(NAMES))


def looped_contrastive(embeddings: Tensor, labels: list[int], temperature: float) -> list[Tensor]:
    """Khosla et al., equation 2, an anchor with positives at a time."""
    unit = [row / row.square().sum().sqrt() for row in embeddings]
    terms = []
    for i, label in enumerate(labels):
        positives = [p for p in range(len(labels)) if p != i and labels[p] == label]
        below = sum((unit[i] @ unit[a] / temperature).exp() for a in range(len(labels)) if a != i)
        parts = [-((unit[i] @ unit[p] / temperature).exp() / below).log() / len(positives) for p in positives]
        if parts:
            terms.append(torch.stack(parts).sum())
    return terms


def test_contrastive_terms_are_the_equation_and_so_are_their_gradients() -> None:
    embeddings = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    labels = [3, 0, 3, 1, 0, 3, 2, 1, 0]  # class 2 has no positive
    terms, count = contrastive_terms(embeddings, torch.tensor(labels), temperature=0.1)
    expected = looped_contrastive(embeddings, labels, 0.1)
    assert count.tolist() == [2, 2, 2, 1, 2, 2, 0, 1, 2]
    assert float(terms[6].detach()) == 0
    torch.testing.assert_close(terms[count > 0], torch.stack(expected))
    (found,) = torch.autograd.grad(terms.sum(), embeddings)
    torch.testing.assert_close(found, torch.autograd.grad(torch.stack(expected).sum(), embeddings)[0])


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_a_batch_without_positives_has_no_loss_and_no_gradient(labels: list[int]) -> None:
    embeddings = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    terms, count = contrastive_terms(embeddings, torch.tensor(labels), temperature=0.1)
    assert terms.tolist() == count.tolist() == [0] * len(labels)
    terms.sum().backward()
    assert embeddings.grad is not None and not embeddings.grad.any()


def test_metric_head_is_adam_on_the_equation(tiny_backbone: Backbone) -> None:
    data = task(domains=1)  # 16 anchors, so that with their partners a batch holds all 16 images
    method = make("metric_head", tiny_backbone, steps=4, batch_size=32, learning_rate=1e-2)
    report = method.fit(data, seed=0, log=quiet)
    features, matrix = frozen_features(tiny_backbone, data), torch.eye(24).requires_grad_()
    adam = torch.optim.Adam([matrix], lr=1e-2)
    for entry in report.losses:
        loss = torch.stack(looped_contrastive(features @ matrix.T, data.labels.tolist(), 0.1)).mean()
        assert entry["loss"] == pytest.approx(float(loss.detach()), abs=1e-4)
        adam.zero_grad()
        loss.backward()
        adam.step()
    found = method.encode_raw(data.images.pixels(torch.arange(16)))
    torch.testing.assert_close(found, features @ matrix.T.detach(), rtol=1e-3, atol=1e-4)
    texts = F.normalize(stock_texts(tiny_backbone) @ method.tensors()["map"].T, dim=1)
    torch.testing.assert_close(method.encode_classes(NAMES[:4]), texts, rtol=0, atol=1e-5)


def test_metric_head_draws_the_images_of_a_class_together(tiny_backbone: Backbone) -> None:
    data = task()
    pixels, same = data.images.pixels(torch.arange(48)), data.labels[:, None] == data.labels
    gaps = []
    for steps, rate in ((1, 0.0), (40, 0.05)):
        method = make("metric_head", tiny_backbone, steps=steps, batch_size=24, learning_rate=rate)
        method.fit(data, seed=0, log=quiet)
        cosines = (embedded := method.encode_images(pixels)) @ embedded.T
        gaps.append(float(cosines[same].mean() - cosines[~same].mean()))
    assert gaps[1] > gaps[0] + 0.3


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=12), st.integers(0, 99))
def test_a_partner_is_of_the_class_and_of_another_domain_where_there_is_one(
    images: list[tuple[int, int]], seed: int
) -> None:
    labels, domains = (torch.tensor(column) for column in zip(*images, strict=True))
    partners, generator = Partners(labels, domains), torch.Generator().manual_seed(seed)
    drawn = torch.stack([partners.draw(torch.arange(len(images)), generator) for _ in range(200)], dim=1)
    for image, (label, domain) in enumerate(images):
        of_class = [other for other, (its, _) in enumerate(images) if its == label]
        allowed = [other for other in of_class if images[other][1] != domain]
        allowed = allowed or [other for other in of_class if other != image] or [image]
        assert set(drawn[image].tolist()) == set(allowed), "all of them, and no other"
        most = torch.bincount(drawn[image]).max() / 200
        assert abs(float(most) - 1 / len(allowed)) < 0.25, "evenly"


@pytest.mark.parametrize("cross_domain", [True, False])
def test_metric_head_batches_are_anchors_of_all_domains_and_partners(
    cross_domain: bool, tiny_backbone: Backbone
) -> None:
    data = task()
    method = make("metric_head", tiny_backbone, batch_size=12, cross_domain=cross_domain)
    stream, own_domain_only = method.batches(data, torch.Generator().manual_seed(0)), 0
    for _ in range(50):
        batch = next(stream)
        assert 7 <= len(batch) <= 12 and len(set(batch.tolist())) == len(batch)
        assert all(int((data.domains[batch] == domain).sum()) >= 2 for domain in range(3))
        for image in batch.tolist():
            mates = [other for other in batch.tolist() if other != image and data.labels[other] == data.labels[image]]
            assert mates, "every image has a positive"
            own_domain_only += all(data.domains[other] == data.domains[image] for other in mates)
    assert (own_domain_only > 0) == (not cross_domain)


def test_metric_head_refuses_what_it_cannot_learn_from(tiny_backbone: Backbone) -> None:
    data = task(domains=1)
    data.labels = torch.arange(16)
    data.class_names = tuple(f"class {number}" for number in range(16))
    with pytest.raises(
        NotApplicableError, match=r"^metric_head compares two images of a class; no class has two labelled ones here$"
    ):
        make("metric_head", tiny_backbone).fit(data, seed=0, log=quiet)


@pytest.mark.parametrize(
    ("name", "kinds", "parts"),
    [
        ("bitfit", (nn.Linear, nn.LayerNorm, nn.Conv2d), ("bias",)),
        ("ln_tuning", (nn.LayerNorm,), ("weight", "bias")),
    ],
)
@pytest.mark.parametrize("text", [False, True])
def test_a_part_of_clip_is_adam_on_the_stock_model(
    name: str, kinds: tuple[type[nn.Module], ...], parts: tuple[str, ...], text: bool, tiny_backbone: Backbone
) -> None:
    data = task(domains=1)
    changes = {"learning_rate": 1e-2, "temperature": 0.5, "text": text}
    method = make(name, tiny_backbone, steps=3, batch_size=16, augment=False, **changes)
    report = method.fit(data, seed=0, log=quiet)
    model = tiny_backbone.clone().model
    trained = {}
    for tower in ("vision_model", "text_model")[: 2 if text else 1]:
        for place, module in model.get_submodule(tower).named_modules():
            for part in parts if isinstance(module, kinds) else ():
                if (value := getattr(module, part, None)) is not None:
                    trained[f"{tower}.{place}.{part}"] = value.requires_grad_()
    assert set(method.tensors()) == set(trained)
    adam = torch.optim.Adam(trained.values(), lr=1e-2)
    ids = tiny_backbone.tokenize([f"a photo of a {name.replace('_', ' ')}" for name in NAMES[:4]])
    pixels = tiny_backbone.normalize(data.images.pixels(torch.arange(16)))
    for entry in report.losses:
        images = F.normalize(model.get_image_features(pixels).pooler_output, dim=1)
        texts = F.normalize(model.get_text_features(ids).pooler_output, dim=1)
        loss = F.cross_entropy(images @ texts.T / 0.5, data.labels)
        assert entry["loss"] == pytest.approx(float(loss.detach()), abs=1e-4)
        adam.zero_grad()
        loss.backward()
        adam.step()


@pytest.mark.parametrize(
    ("name", "change", "pattern"),
    [
        ("bitfit", {"biases": "query_and_mlp"}, r"vision_model\..*\.(self_attn\.q_proj|mlp\.fc1)\.bias"),
        ("ln_tuning", {"parts": "gains"}, r"vision_model\..*norm[12]?\.weight"),
        ("ln_tuning", {"parts": "biases"}, r"vision_model\..*norm[12]?\.bias"),
    ],
)
def test_fewer_parts_are_trained_where_asked(
    name: str, change: dict[str, Any], pattern: str, tiny_backbone: Backbone
) -> None:
    method = make(name, tiny_backbone, steps=1, **change)
    method.fit(task(), seed=0, log=quiet)
    assert all(re.fullmatch(pattern, key) for key in method.tensors())
    assert len(method.tensors()) == {"bitfit": 2 * 2, "ln_tuning": 2 * 2 + 2}[name]


@pytest.mark.parametrize(
    ("name", "lowest", "expected"),
    [("coop", 1e-6, [1e-2, 1e-2, 1e-2 * 10**-0.15]), ("full_finetune", 1e-8, [1e-2, 1e-2, 1e-2 * 10**-0.15])],
)
def test_released_schedule_falls_with_the_epochs(
    name: str, lowest: float, expected: list[float], tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.Adam.step

    def noted(self: torch.optim.Adam, *args: Any, **options: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    released = {"schedule": "released", "batch_size": 24, "learning_rate": 1e-2, "augment": False}
    make(name, tiny_backbone, steps=3, **released).fit(task(), seed=0, log=quiet)
    assert rates == pytest.approx(expected)
    rates.clear()
    make(name, tiny_backbone, steps=1, **{**released, "learning_rate": lowest / 10}).fit(task(), seed=0, log=quiet)
    assert rates == pytest.approx([lowest])


# --- golden ---


@pytest.mark.golden
def test_golden_coop_text_features() -> None:
    golden = golden_set()
    arrays, backbone = golden.arrays("pros.npz"), golden.clip(vision_layers=2, text_layers=2)
    ids = torch.from_numpy(arrays["coop_text_token_ids"])
    context = golden.fill("pros.text_context", golden.shape("pros.npz", "s1_", "pros.text_context"), "vec")
    method = CoOp(backbone, CoOp.Config(context_tokens=len(context)))
    method.load_tensors({"context": context}, {})
    slots = torch.arange(1, 1 + len(context)).expand(len(ids), -1)
    features = method.text_features(PromptTemplate.from_ids(backbone, ids, slots))
    expected = torch.from_numpy(arrays["coop_text_features"])
    assert_golden(F.normalize(features), F.normalize(expected), what="coop text features")
