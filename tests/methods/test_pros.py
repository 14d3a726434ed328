"""ProS: its equations against loops written here, and training, checkpoints and encoding."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.interface import FitReport, Images, Method, TrainingData
from methods.official.pros import SETTINGS as OFFICIAL
from methods.official.pros_release import decayed_rate, official_batches, official_epoch
from methods.parts.backbone import Backbone, BackboneError
from methods.parts.prompt_units import new_context, new_units
from methods.parts.prompts import PromptTemplate
from methods.pros import ProS, ProSConfig, ProSModel
from methods.training.loop import seeded
from tests.support.images import InMemoryImages

CLASSES = ("cat", "hot_air_balloon", "dog", "sea_turtle")
DOMAINS = ("clipart", "sketch", "icon")
OWN = {"domain": torch.tensor([0, 2, 1, 1, 0]), "class": torch.tensor([3, 0, 1, 1, 2])}
BOTH: tuple[Literal[1, 2], ...] = (1, 2)
QUICK: dict[str, Any] = {
    "steps": 6, "batch_size": 6, "stage1_batch_size": 6, "stage1_share": 0.5, "jitter": 0.0, "crop": 1.0, "flip": False,
}  # fmt: skip


class Untouchable(Images):
    """Target images that must not be used."""

    def __len__(self) -> int:
        raise AssertionError("target images were used")

    def pixels(self, index: Tensor) -> Tensor:
        raise AssertionError("target images were used")

    @property
    def content(self) -> Sequence[str]:
        raise AssertionError("target images were used")


def task(*, domains: int = 3, per_cell: int = 2, size: int = 32, classes: int = 4, **extra: Any) -> TrainingData:
    """A pattern for each class, a tint for each domain, some noise; D * C * per_cell images."""
    draw = torch.Generator().manual_seed(5)
    patterns, tints = torch.rand(classes, 3, size, size, generator=draw), torch.rand(domains, 3, 1, 1, generator=draw)
    cells = [(d, c) for d in range(domains) for c in range(classes) for _ in range(per_cell)]
    noise = torch.rand(len(cells), 3, size, size, generator=draw)
    pixels = torch.stack([(0.6 * patterns[c] + 0.2 * tints[d] + 0.2 * noise[i]) for i, (d, c) in enumerate(cells)])
    return TrainingData(
        **{
            "protocol": "test",
            "images": InMemoryImages(pixels),
            "labels": torch.tensor([c for _, c in cells]),
            "domains": torch.tensor([d for d, _ in cells]),
            "class_names": CLASSES,
            "domain_names": DOMAINS[:domains],
            **extra,
        }
    )


def quiet(**numbers: object) -> None:
    """A log that keeps nothing."""


def config(**changes: Any) -> ProSConfig:
    return ProSConfig(**{**QUICK, **changes})


def fitted(backbone: Backbone, data: TrainingData | None = None, *, seed: int = 0, **changes: Any) -> ProS:
    method = ProS(backbone, config(**changes))
    method.fit(data or task(), seed=seed, log=quiet)
    return method


def untrained(backbone: Backbone, **changes: Any) -> ProS:
    """A method whose parameters are random, so that every one of them shows in the outputs."""
    method = ProS(backbone, ProSConfig(**{"dropout": 0.0, **changes}))
    model = ProSModel(backbone, method.config, len(DOMAINS), len(CLASSES), seeded(1))
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise))
    method._model = model
    return method


def images(count: int = 5) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(7))


# --- the equations ---------------------------------------------------------------------------------------------------


def run_stock(vision: Any, sequence: Tensor) -> Tensor:
    """The stock transformer over one sequence [T, w] -> [T, w]."""
    output: Tensor = vision.encoder(inputs_embeds=vision.pre_layrnorm(sequence[None])).last_hidden_state
    return output[0]


def patches_of(vision: Any, image: Tensor) -> list[Tensor]:
    """Patch tokens with their positions, one by one."""
    grid = vision.embeddings.patch_embedding(image[None])[0]
    tokens = [grid[:, row, column] for row in range(grid.shape[1]) for column in range(grid.shape[2])]
    return [token + vision.embeddings.position_embedding.weight[1 + place] for place, token in enumerate(tokens)]


def feature_by_hand(method: ProS, image: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    """``[cls + pos_0 ; prompts ; patches + pos]`` through CLIP, the class token projected: [E]."""
    vision, model = method.backbone.model.vision_model, method.model
    first = model.class_token + vision.embeddings.position_embedding.weight[0]
    sequence = torch.stack([first, *prompts, *patches_of(vision, image)])
    index = {"class_token": 0, "first_prompt": 1}[method.config.read_out]
    return model.vision_projection @ vision.post_layernorm(run_stock(vision, sequence)[index])


def simulate_by_hand(method: ProS, image: Tensor, domain: int | None, class_: int | None) -> list[Tensor]:
    """``[t_D ; t_S ; domain units ; class units ; patches]``, own units zero; the outputs at the templates."""
    model, kinds = method.model, method.config.kinds
    sequence: list[Tensor] = []
    for kind in kinds:
        sequence += list({"domain": model.domain_template, "class": model.class_template}[kind][0])
    count = len(sequence)
    for kind in kinds if method.config.units != "none" else ():
        table, own = (model.domain_units, domain) if kind == "domain" else (model.class_units, class_)
        for row in range(len(table)):
            sequence += [torch.zeros_like(token) if row == own else token for token in table[row]]
    vision: Any = model.simulator.vision_model
    outputs = run_stock(vision, torch.stack(sequence + patches_of(vision, image)))
    return [model.simulator_out @ vision.post_layernorm(outputs[place]) for place in range(count)]


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("read_out", ["class_token", "first_prompt"])
def test_stage_1_shows_the_own_units(tiny_backbone: Backbone, length: int, read_out: str) -> None:
    method = untrained(tiny_backbone, prompt_length=length, read_out=read_out)
    pixels = images()
    with torch.no_grad():
        got = method.model.training_features(1, pixels, OWN)
        for row in range(len(pixels)):
            d, c = int(OWN["domain"][row]), int(OWN["class"][row])
            prompts = [*method.model.domain_units[d], *method.model.class_units[c]]
            torch.testing.assert_close(got[row], feature_by_hand(method, pixels[row], prompts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{}, {"prompt_length": 2}, {"units": "class"}, {"units": "domain"}, {"units": "none"}]
)
def test_stage_2_hides_the_own_units_and_inference_none(tiny_backbone: Backbone, changes: dict[str, Any]) -> None:
    method = untrained(tiny_backbone, **changes)
    pixels = images()
    with torch.no_grad():
        training = method.model.training_features(2, pixels, OWN)
        inference = method.model.inference_features(pixels)
        for row in range(len(pixels)):
            d, c = int(OWN["domain"][row]), int(OWN["class"][row])
            for got, own in ((training[row], (d, c)), (inference[row], (None, None))):
                expected = feature_by_hand(method, pixels[row], simulate_by_hand(method, pixels[row], *own))
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    if changes.get("units") != "none":
        assert (training - inference).norm() > 1e-3 * inference.norm()


def test_without_a_mask_every_unit_is_seen(tiny_backbone: Backbone) -> None:
    method = untrained(tiny_backbone, mask=False)
    pixels, model = images(), method.model
    everything = [*model.domain_units.flatten(0, 1), *model.class_units.flatten(0, 1)]
    with torch.no_grad():
        first = model.training_features(1, pixels, OWN)
        expected = torch.stack([feature_by_hand(method, image, everything) for image in pixels])
        torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)
        second, inference = model.training_features(2, pixels, OWN), model.inference_features(pixels)
        assert torch.equal(second, inference)


def test_without_a_simulator_inference_takes_the_mean_units(tiny_backbone: Backbone) -> None:
    method = untrained(tiny_backbone, simulator=False)
    pixels, model = images(), method.model
    mean = [sum(model.domain_units[d, 0] for d in range(3)) / 3, sum(model.class_units[c, 0] for c in range(4)) / 4]
    with torch.no_grad():
        expected = torch.stack([feature_by_hand(method, image, mean) for image in pixels])  # type: ignore[arg-type]
        torch.testing.assert_close(model.inference_features(pixels), expected, rtol=1e-4, atol=1e-5)
    assert not any(name.startswith("simulator") for name, _ in model.named_parameters())


def test_a_lone_domain_is_not_hidden(tiny_backbone: Backbone) -> None:
    method = ProS(tiny_backbone, ProSConfig())
    method._model = ProSModel(tiny_backbone, method.config, 1, 4, seeded(0))
    own = {"domain": torch.zeros(5, dtype=torch.long), "class": OWN["class"]}
    with torch.no_grad():
        got = method.model.simulate(images(), own)
        for row, image in enumerate(images()):
            expected = torch.stack(simulate_by_hand(method, image, None, int(own["class"][row])))
            torch.testing.assert_close(got[row], expected, rtol=1e-4, atol=1e-5)


def test_the_loss_is_cross_entropy_over_cosines(tiny_backbone: Backbone) -> None:
    method = untrained(tiny_backbone)
    prompts = PromptTemplate.build(tiny_backbone, CLASSES, method.config.text_template, 16)
    with torch.no_grad():
        features = method.model.training_features(2, images(), OWN)
        texts = method.model.text_features(prompts)
        total = 0.0
        for feature, label in zip(features, OWN["class"].tolist(), strict=True):
            logits = [float(feature @ text / feature.norm() / text.norm()) / 0.07 for text in texts]
            total += math.log(sum(math.exp(logit - logits[label]) for logit in logits))
        assert float(method.model.loss(2, images(), OWN, prompts)) == pytest.approx(total / len(features), rel=1e-5)


def test_dropout_hits_the_whole_sequence_of_stage_1_only(tiny_backbone: Backbone, monkeypatch: Any) -> None:
    method = untrained(tiny_backbone, dropout=0.5)
    seen: list[Tensor] = []

    def read(backbone: Backbone, tokens: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.append(tokens)
        return tokens[:, 0]

    monkeypatch.setattr("methods.pros.read_image", read)
    for stage, generator in ((1, seeded(3)), (1, None), (2, seeded(3))):
        method.model.training_features(stage, images(50), {k: v.repeat(10) for k, v in OWN.items()}, generator)  # type: ignore[arg-type]
    dropped, clean, second = (tokens.detach() for tokens in seen)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * clean[kept])
    assert kept.float().mean() == pytest.approx(0.5, abs=0.01)
    assert kept.float().mean(dim=(0, 2)).sub(0.5).abs().max() < 0.06  # class token, prompts and every patch alike
    assert (second != 0).all()


def test_untrained_units_and_context(tiny_backbone: Backbone) -> None:
    bound = math.sqrt(6 / (3 * tiny_backbone.patch_size**2 + tiny_backbone.vision_width))
    units = new_units(400, tiny_backbone, seeded(0))
    assert units.abs().max() <= bound
    assert units.abs().max() > 0.99 * bound
    assert float(units.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert float(new_context(400, tiny_backbone, seeded(0)).std()) == pytest.approx(0.02, rel=0.03)


# --- exact speed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", BOTH)
@pytest.mark.parametrize("changes", [{}, {"units": "domain", **OFFICIAL}, {"mask": False, "simulator_layers": 1}])
def test_the_fast_path_gives_the_plain_numbers(
    tiny_backbone: Backbone, stage: Literal[1, 2], changes: dict[str, Any]
) -> None:
    results = []
    for fast in (True, False):
        method = untrained(tiny_backbone, fast=fast, **changes)
        prompts = PromptTemplate.build(tiny_backbone, CLASSES, method.config.text_template, 16)
        method.optimizer(stage)
        method.model.loss(stage, images(), OWN, prompts).backward()
        gradients = {name: value.grad for name, value in method.model.stage_parameters(stage).items()}
        features = method.model.training_features(stage, images(), OWN)
        results.append((features.detach(), method.encode_raw(images()), method.encode_classes(CLASSES), gradients))
    for ours, plain in zip(results[0][:3], results[1][:3], strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))
    largest = max(float(value.abs().max()) for value in results[1][3].values() if value is not None)
    for name, plain_gradient in results[1][3].items():
        ours_gradient = results[0][3][name]
        assert ours_gradient is not None
        assert plain_gradient is not None
        torch.testing.assert_close(ours_gradient, plain_gradient, rtol=0, atol=1e-5 * largest, msg=name)


def test_the_simulator_projects_shared_tokens_once(tiny_backbone: Backbone) -> None:
    method, seen = untrained(tiny_backbone), []
    first = method.model.simulator.vision_model.encoder.layers[0].self_attn
    first.k_proj.register_forward_hook(lambda module, given, result: seen.append(tuple(result.shape[:-1])))
    method.model.simulate(images(), OWN)
    method.model.simulate(images(), None)
    shared = 2 + len(method.model.domain_units) + len(method.model.class_units)
    patches = (len(images()), tiny_backbone.grid**2)
    assert seen == [(shared + 1,), patches, (shared,), patches]  # in training with the row of masked units


# --- training --------------------------------------------------------------------------------------------------------


def test_the_loss_falls_in_both_stages(tiny_backbone: Backbone) -> None:
    method = ProS(tiny_backbone, config(steps=60, learning_rate=3e-3, batch_size=12, stage1_batch_size=12, dropout=0.1))
    report = method.fit(task(), seed=0, log=quiet)
    assert report.steps == 60
    for stage in ("prompt units", "simulator"):
        losses = [float(point["loss"]) for point in report.losses if point["stage"] == stage]
        assert len(losses) == 30
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    data = task()
    logits = method.classify(data.images.pixels(torch.arange(len(data.images))), CLASSES)
    assert (logits.argmax(dim=1) == data.labels).float().mean() > 0.7  # chance: 0.25


def test_each_stage_moves_its_own_parameters_and_never_the_backbone(tiny_backbone: Backbone) -> None:
    method = ProS(tiny_backbone, config(steps=2))
    start = ProSModel(tiny_backbone, method.config, 3, 4, seeded(0, 0)).state_dict()  # what fit begins with
    moments: list[dict[str, Tensor]] = []
    weights = tiny_backbone.weights_hash
    method.fit(task(), seed=0, log=lambda **_: moments.append({k: v.clone() for k, v in method.tensors().items()}))
    first, second = (
        {name for name in start if not torch.equal(before[name], after[name])}
        for before, after in ((start, moments[0]), (moments[0], moments[1]))
    )
    assert first == {"domain_units", "class_units", "text_context", "text_projection"}
    simulator = {name for name in start if name.startswith("simulator.")}
    simulator -= {"simulator.vision_model.embeddings.class_embedding"}  # the simulator has no class token
    still = {name for name in simulator - second if not name.endswith("k_proj.bias")}  # those have no true gradient
    assert not still
    assert second - simulator == {
        *("domain_template", "class_template", "simulator_out"),
        *("class_token", "vision_projection", "text_context", "text_projection"),
    }
    assert tiny_backbone.weights_hash == weights
    assert not any(parameter.requires_grad for parameter in tiny_backbone.model.parameters())


def test_the_same_seed_gives_the_same_bits(tiny_backbone: Backbone) -> None:
    changes: dict[str, Any] = {"jitter": 0.4, "crop": 0.8, "flip": True, "steps": 4}
    one, other, third = (fitted(tiny_backbone, seed=seed, **changes) for seed in (3, 3, 4))
    torch.manual_seed(99)
    assert torch.equal(one.encode_images(images()), other.encode_images(images()))
    assert all(torch.equal(value, other.tensors()[name]) for name, value in one.tensors().items())
    assert not torch.equal(one.encode_images(images()), third.encode_images(images()))


def test_a_checkpoint_gives_equal_features(tiny_backbone: Backbone, tmp_path: Path) -> None:
    method = fitted(tiny_backbone, prompt_length=2)
    method.save(tmp_path / "pros")
    loaded = ProS.load(tmp_path / "pros", tiny_backbone)
    assert isinstance(loaded, ProS)
    assert loaded.config == method.config
    assert (loaded.class_names, loaded.domain_names) == (CLASSES, DOMAINS)
    assert torch.equal(loaded.encode_images(images()), method.encode_images(images()))
    assert torch.equal(loaded.encode_classes(["zebra", *CLASSES]), method.encode_classes(["zebra", *CLASSES]))


@pytest.mark.parametrize("changes", [{}, {"simulator": False}, {"mask": False}, OFFICIAL])
def test_an_embedding_depends_on_its_image_alone(tiny_backbone: Backbone, changes: dict[str, Any]) -> None:
    method = fitted(tiny_backbone, **changes)
    pixels = images(9)
    together = method.encode_images(pixels)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(9))
    alone = torch.cat([method.encode_images(image[None]) for image in pixels])
    shuffled = method.encode_images(pixels.flip(0)).flip(0)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(together, shuffled, rtol=0, atol=1e-5)
    torch.testing.assert_close(F.normalize(method.encode_raw(pixels), dim=-1), together)


@pytest.mark.parametrize("name", [*ProS.variants, *ProS.ablations])
def test_every_variant_and_ablation_trains(tiny_backbone: Backbone, name: str) -> None:
    changes = {**ProS.variants, **ProS.ablations}[name]
    method = ProS(tiny_backbone, config(**{**changes, "steps": 2}))
    report = method.fit(task(), seed=0, log=quiet)
    assert report.steps == 2
    stages = {point["stage"] for point in report.losses}
    assert stages == {"no_units": {"simulator"}, "no_simulator": {"prompt units"}}.get(
        name, {"prompt units", "simulator"}
    )
    assert method.encode_images(images()).shape == (5, tiny_backbone.embed_dim)
    assert method.classify(images(), CLASSES).shape == (5, 4)


def test_official_is_the_released_code() -> None:
    released = ProSConfig.official()
    assert released == replace(ProSConfig(), **OFFICIAL) == ProSConfig(**ProS.variants["official"])
    assert ProSConfig() == ProSConfig(**ProS.variants["paper"])
    fields = set(ProSConfig.__dataclass_fields__)
    assert all(deviation.switch in fields or deviation.ours for deviation in ProS.card.deviations)
    switches = {deviation.switch for deviation in ProS.card.deviations} - {""}
    assert switches == set(OFFICIAL) - {"test_statistics"}  # the paper's value, too


def test_statistics_of_training_and_test(tiny_backbone: Backbone, monkeypatch: Any) -> None:
    asked: list[str] = []
    normalize = Backbone.normalize

    def spy(self: Backbone, pixels: Tensor, statistics: Any = "clip") -> Tensor:
        asked.append(statistics)
        return normalize(self, pixels, statistics)

    monkeypatch.setattr(Backbone, "normalize", spy)
    method = fitted(tiny_backbone, **OFFICIAL)
    assert set(asked) == {"imagenet"}
    asked.clear()
    method.encode_images(images())
    assert asked == ["clip"]


def test_bf16_training_gives_float32_features(tiny_folder: Path) -> None:
    backbone = Backbone.load(tiny_folder, precision="bf16")
    method = fitted(backbone)
    assert all(value.dtype == torch.float32 for value in method.tensors().values())
    assert method.encode_raw(images()).dtype == method.encode_classes(CLASSES).dtype == torch.float32
    exact = ProS(Backbone.load(tiny_folder), method.config)
    exact.load_tensors(method.tensors(), method.facts())
    assert (method.encode_images(images()) * exact.encode_images(images())).sum(dim=-1).min() > 0.99


# --- schedule, budget, selection -------------------------------------------------------------------------------------


def steps_of(method: ProS, data: TrainingData) -> dict[int, int]:
    return dict(method.stage_steps(data).items())


def test_epochs_and_budgets(tiny_backbone: Backbone) -> None:
    data = task()  # 24 images
    paper = ProS(tiny_backbone, ProSConfig(batch_size=10, stage1_batch_size=16))
    assert steps_of(paper, data) == {1: 2, 2: 30}
    assert steps_of(ProS(tiny_backbone, ProSConfig(steps=50)), data) == {1: 10, 2: 40}
    assert steps_of(ProS(tiny_backbone, ProSConfig(steps=1)), data) == {2: 1}
    assert steps_of(ProS(tiny_backbone, ProSConfig(steps=2)), data) == {1: 1, 2: 1}
    assert steps_of(ProS(tiny_backbone, ProSConfig(steps=50, simulator=False)), data) == {1: 50}
    assert steps_of(ProS(tiny_backbone, ProSConfig(steps=50, units="none")), data) == {2: 50}
    released = ProS(tiny_backbone, ProSConfig(batch_size=9, stage1_batch_size=9, sampler="released"))
    assert official_epoch(data.domains, 9) == 18  # 8 images a domain hold 2 rounds of 3
    assert steps_of(released, data) == {1: 2, 2: 20}


def test_the_rate_decays_by_epoch_in_stage_2(tiny_backbone: Backbone, monkeypatch: Any) -> None:
    rates: list[float] = []
    step = torch.optim.Adam.step

    def spy(self: torch.optim.Adam) -> None:
        rates.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    fitted(tiny_backbone, steps=10, epochs=4, stage1_share=0.2, learning_rate=1e-4)
    assert rates[:2] == [1e-4, 1e-4]
    expected = [decayed_rate(1e-4, epoch) for epoch in (0, 0, 1, 1, 2, 2, 3, 3)]
    assert rates[2:] == pytest.approx(expected)
    assert decayed_rate(1e-4, 1) == pytest.approx(1e-4 * 1e-3 ** (1 / 20))
    assert decayed_rate(1e-4, 100) == 1e-6


def test_validation_once_an_epoch_of_the_last_stage_and_patience(tiny_backbone: Backbone) -> None:
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    kept: list[dict[str, Tensor]] = []

    def validate(method: Method) -> float:
        kept.append({name: value.clone() for name, value in method.tensors().items()})
        method.encode_images(images())
        return next(scores)

    method = ProS(tiny_backbone, config(steps=12, stage1_share=0.5, epochs=6))
    report = method.fit(task(validate=validate), seed=0, log=quiet)
    assert [point["step"] for point in report.validation] == [7, 8, 9, 10]  # stopped after two scores without gain
    assert (report.steps, report.selected_step) == (10, 8)
    assert all(torch.equal(value, kept[1][name]) for name, value in method.tensors().items())
    last = method.fit(task(validate=validate, select="last"), seed=0, log=quiet)
    assert (last.steps, last.validation) == (12, [])


def test_a_task_without_validation_runs_to_the_end(tiny_backbone: Backbone) -> None:
    report: FitReport = ProS(tiny_backbone, config(steps=8)).fit(task(), seed=0, log=quiet)
    assert (report.steps, report.selected_step, report.validation) == (8, 8, [])


def test_trainable_parameters_are_counted_once(tiny_backbone: Backbone) -> None:
    method = ProS(tiny_backbone, config(steps=2))
    report = method.fit(task(), seed=0, log=quiet)
    unused = method.model.simulator.class_token.numel()
    assert report.trainable_parameters == sum(p.numel() for p in method.model.parameters()) - unused


# --- what it may see -------------------------------------------------------------------------------------------------


def test_one_labelled_domain_with_target_images_and_unseen_names(tiny_backbone: Backbone) -> None:
    data = task(
        domains=1, classes=3, class_names=(*CLASSES, "zebra"), domain_names=("flat", "line"), target=Untouchable()
    )
    method = fitted(tiny_backbone, data)
    assert (method.class_names, method.domain_names) == (CLASSES[:3], ("flat",))
    assert method.model.class_units.shape[0] == 3
    classes = method.encode_classes(["zebra", "a name never seen"])
    torch.testing.assert_close(classes.norm(dim=-1), torch.ones(2))
    assert method.classify(images(), [*CLASSES, "zebra"]).shape == (5, 5)


def test_classes_and_domains_are_numbered_anew(tiny_backbone: Backbone) -> None:
    """Labels 1 and 3 of 4 names, domains 0 and 2 of 3: two units each, in order, and the texts of those classes."""
    data = task(per_cell=3)
    keep = torch.isin(data.labels, torch.tensor([1, 3])) & torch.isin(data.domains, torch.tensor([0, 2]))
    some = TrainingData(
        protocol="test",
        images=InMemoryImages(data.images.pixels(torch.arange(len(data.images)))[keep]),
        labels=data.labels[keep],
        domains=data.domains[keep],
        class_names=CLASSES,
        domain_names=DOMAINS,
    )
    method = fitted(tiny_backbone, some, steps=40, learning_rate=3e-3, dropout=0.0)
    assert (method.class_names, method.domain_names) == (("hot_air_balloon", "sea_turtle"), ("clipart", "icon"))
    logits = method.classify(some.images.pixels(torch.arange(len(some.images))), method.class_names)
    assert (logits.argmax(dim=1) == torch.searchsorted(torch.tensor([1, 3]), some.labels)).float().mean() > 0.9


def test_the_released_sampler_ignores_the_seed() -> None:
    domains = torch.tensor([0, 1] * 6)
    first = next(official_batches(domains, 8, 4))
    assert torch.equal(first, next(official_batches(domains, 8, 4)))
    assert domains[first].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_errors_name_the_fix(tiny_backbone: Backbone) -> None:
    with pytest.raises(RuntimeError, match="call fit or load first"):
        ProS(tiny_backbone).encode_images(images())
    with pytest.raises(ValueError, match="units=none with simulator=False"):
        ProSConfig(units="none", simulator=False)
    with pytest.raises(ValueError, match=r"dropout 1\.0"):
        ProSConfig(dropout=1.0)
    with pytest.raises(BackboneError, match="use fewer context tokens"):
        fitted(tiny_backbone, context_tokens=60)
