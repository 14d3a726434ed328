"""ProS against the numbers of its released code (tests/golden/README.md, sections 5, 9 and 10).

Everything runs through the method's own code with its ``official`` settings. The fixtures have no dropout, no
augmentation and un-normalised inputs, so those are switched off here.
"""

import functools
import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.official.pros_release import decayed_rate, official_batches, official_epoch
from methods.parts.backbone import VisionTower
from methods.parts.losses import cosine_similarities
from methods.parts.prompts import PromptTemplate
from methods.pros import ProS, ProSConfig
from tests.support.golden import (
    FEATURES,
    Compared,
    assert_all_compared,
    assert_golden,
    assert_gradients,
    assert_step,
    golden_set,
)

pytestmark = pytest.mark.golden

STAGES: tuple[Literal[1, 2], ...] = (1, 2)
VARIANTS: dict[str, dict[str, Any]] = {
    "no_mask": {"mask": False},
    "class_only": {"units": "class"},
    "domain_only": {"units": "domain"},
    "none": {"units": "none"},
}
#: Declared trainable by the released code although no computation uses it; here it is no parameter at all.
ABSENT = "pros.generator.visual_projection.weight"
NOT_COMPARED: dict[str, str] = {}


@pytest.fixture(scope="module")
def arrays() -> Compared:
    return Compared("pros.npz")


# --- names: the fixtures' and ours -----------------------------------------------------------------------------------

OURS = {
    "pros.text_context": "text_context",
    "pros.domain_prompts": "domain_units",
    "pros.class_prompts": "class_units",
    "pros.domain_template": "domain_template",
    "pros.class_template": "class_template",
    "pros.generator_out.weight": "simulator_out",
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "vision_projection",
    "vision_model.embeddings.class_embedding": "class_token",
}


def ours(canonical: str) -> str:
    """The name of a parameter in ProSModel."""
    return OURS.get(canonical) or canonical.replace("pros.generator.", "simulator.")


AUTHORS = {  # the released code's names -> canonical names
    "specific_domain_prompts": ["pros.domain_prompts"],
    "specific_class_prompts": ["pros.class_prompts"],
    "text_prompt_learner.ctx": ["pros.text_context"],
    "text_encoder.text_projection": ["text_projection.weight"],
    "feature_template": ["vision_model.embeddings.class_embedding"],
    "feature_proj": ["visual_projection.weight"],
    "generator_proj": ["pros.generator_out.weight"],
    "ge_cls_prompt_template": ["pros.class_template"],
    "ge_dom_prompt_template": ["pros.domain_template"],
}


def canonical(authors: str) -> list[str]:
    """The canonical names of what the released code calls ``authors``."""
    if authors in AUTHORS:
        return AUTHORS[authors]
    head, _, name = authors.partition("generator.")
    assert not head, f"unknown name {authors}"
    name = name.replace("transformer.resblocks.", "encoder.layers.")
    for old, new in (
        ("conv1.weight", "embeddings.patch_embedding.weight"),
        ("positional_embedding", "embeddings.position_embedding.weight"),
        ("class_embedding", "embeddings.class_embedding"),
        ("ln_pre", "pre_layrnorm"),
        ("ln_post", "post_layernorm"),
        ("ln_1", "layer_norm1"),
        ("ln_2", "layer_norm2"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
        ("attn.out_proj", "self_attn.out_proj"),
    ):
        name = name.replace(old, new)
    if name == "proj":
        return [ABSENT]
    prefix = "pros.generator.vision_model."
    if "attn.in_proj_" in name:
        return [prefix + name.replace("attn.in_proj_", f"self_attn.{part}_proj.") for part in "qkv"]
    return [prefix + name]


# --- the method, filled by rule --------------------------------------------------------------------------------------


@functools.cache
def fills() -> dict[str, Tensor]:
    """Every parameter of ProSModel for the fixture's sizes, filled by rule."""
    golden = golden_set()
    backbone = golden.clip(vision_layers=2, text_layers=2)

    def value(stage: int, name: str, kind: str = "vec") -> Tensor:
        return golden.fill(name, golden.shape("pros.npz", f"s{stage}_", name), kind)

    tensors = {
        "domain_units": value(1, "pros.domain_prompts")[:, None],
        "class_units": value(1, "pros.class_prompts")[:, None],
        "domain_template": value(2, "pros.domain_template")[:, None],
        "class_template": value(2, "pros.class_template")[:, None],
        "text_context": value(1, "pros.text_context"),
        "text_projection": backbone.text_projection.detach(),
        "vision_projection": backbone.vision_projection.detach(),
        "class_token": backbone.class_token.detach(),
        "simulator_out": value(2, "pros.generator_out.weight", "weight"),
    }
    vision = backbone.vision.vision_model.config
    for name, random in VisionTower.random(vision, layers=simulator_layers(), seed=0).state_dict().items():
        tensors[f"simulator.{name}"] = golden.fill(f"pros.generator.{name}", tuple(random.shape))
    return tensors


def simulator_layers() -> int:
    """Blocks of the fixture's simulator."""
    names = [str(name) for name in golden_set().arrays("pros.npz")["s2_param_names"]]
    return len({name.split(".")[5] for name in names if ".encoder.layers." in name})


def filled(**changes: Any) -> ProS:
    """ProS with its official settings on the filled CLIP, every parameter filled by rule."""
    golden = golden_set()
    quiet = {"train_statistics": "none", "test_statistics": "none", "dropout": 0.0}
    sizes = {"context_tokens": len(fills()["text_context"]), "simulator_layers": simulator_layers()}
    method = ProS(
        golden.clip(vision_layers=2, text_layers=2), replace(ProSConfig.official(), **{**quiet, **sizes, **changes})
    )
    method.load_tensors(fills(), {"class_names": golden.config["classes"], "domain_names": golden.config["domains"]})
    return method


def batch(arrays: Mapping[str, np.ndarray]) -> tuple[Tensor, dict[str, Tensor]]:
    """The fixture's images [B, 3, H, W] and what they are."""
    own = {kind: torch.from_numpy(arrays[f"{kind}_ids"]).long() for kind in ("class", "domain")}
    return golden_set().images("images.pros", len(own["class"])), own


def prompts_of(method: ProS, ids: np.ndarray, start: np.ndarray | int) -> PromptTemplate:
    """The fixture's texts: token ids [C, 77], and where each text's context begins."""
    first = torch.as_tensor(start).reshape(-1, 1).expand(len(ids), 1)
    slots = first + torch.arange(method.config.context_tokens)
    return PromptTemplate.from_ids(method.backbone, torch.from_numpy(ids).long(), slots)


def texts_of(method: ProS, arrays: Mapping[str, np.ndarray]) -> PromptTemplate:
    return prompts_of(method, arrays["text_token_ids"], arrays["text_context_start"])


# --- outputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("stage", STAGES)
def test_outputs(arrays: Compared, stage: Literal[1, 2], fast: bool) -> None:
    method = filled(fast=fast)
    pixels, own = batch(arrays)
    template = texts_of(method, arrays)
    with torch.no_grad():
        images = method.model.training_features(stage, pixels, own)
        texts = method.model.text_features(template)
        logits = cosine_similarities(images, texts) / method.config.temperature
        loss = method.model.loss(stage, pixels, own, template)
    normalize = torch.nn.functional.normalize
    assert_golden(normalize(images, dim=-1), arrays[f"s{stage}_image_features"], what="image features")
    assert_golden(normalize(texts, dim=-1), arrays[f"s{stage}_text_features"], what="text features")
    assert_golden(logits, arrays[f"s{stage}_logits"], what="logits")
    assert_golden(loss, arrays[f"s{stage}_loss"], what="loss")
    accuracy = (logits.argmax(dim=-1) == own["class"]).double().mean()
    assert_golden(accuracy, arrays[f"s{stage}_acc"], 1e-6, what="accuracy")


def test_generated_prompts_and_inference(arrays: Compared) -> None:
    method = filled()
    pixels, own = batch(arrays)
    with torch.no_grad():
        for stage, shown in ((2, own), (4, None)):
            domain, class_ = method.model.simulate(pixels, shown).split(1, dim=1)
            assert_golden(domain, arrays[f"s{stage}_generated_domain_prompt"], what="generated domain prompt")
            assert_golden(class_, arrays[f"s{stage}_generated_class_prompt"], what="generated class prompt")
    assert_golden(method.encode_raw(pixels), arrays["s4_image_features_raw"], what="inference features")


def test_text_without_a_sentence(arrays: Compared) -> None:
    method = filled(text_template="{context} {name}.")
    with torch.no_grad():
        texts = method.model.text_features(prompts_of(method, arrays["coop_text_token_ids"], 1))
    expected = arrays["coop_text_features"]
    is_normalized = np.allclose(np.linalg.norm(expected, axis=-1), 1, atol=1e-4)
    assert_golden(torch.nn.functional.normalize(texts, dim=-1) if is_normalized else texts, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_released_ablations(arrays: Compared, variant: str) -> None:
    method = filled(**VARIANTS[variant])
    pixels, own = batch(arrays)
    with torch.no_grad():
        for stage in STAGES:
            if (variant, stage) != ("none", 1):  # without units there is no stage 1
                features = method.model.training_features(stage, pixels, own)
                assert_golden(features, arrays[f"abl_{variant}_s{stage}_image_features_raw"], what=f"stage {stage}")
    assert_golden(method.encode_raw(pixels), arrays[f"abl_{variant}_s4_image_features_raw"], what="inference")


@pytest.mark.parametrize("variant", ["class_only", "domain_only", "none"])
def test_the_paper_reads_the_template(arrays: Compared, variant: str) -> None:
    """With the switch on ``template`` the prompt is another one: the released index is not the template's."""
    pixels, own = batch(arrays)
    with torch.no_grad():
        paper = filled(**VARIANTS[variant], simulator_output="template").model.training_features(2, pixels, own)
    released = arrays[f"abl_{variant}_s2_image_features_raw"]
    assert np.linalg.norm(paper.numpy() - released) > 1e-2 * np.linalg.norm(released)


# --- one training step -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_and_one_step(arrays: Compared, stage: Literal[1, 2]) -> None:
    prefix = f"s{stage}_"
    method = filled()
    pixels, own = batch(arrays)
    template = texts_of(method, arrays)
    names = [str(name) for name in arrays[f"{prefix}param_names"]]
    optimizer = method.optimizer(stage)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(float(arrays[f"{prefix}lr"]))

    everything = dict(method.model.named_parameters())
    parameters = {name: everything[ours(name)] for name in names if name != ABSENT}
    trained = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    unused = {name for name in parameters if id(parameters[name]) not in trained}
    assert len(trained) == len(parameters) - len(unused)
    assert unused <= {str(name) for name, none in zip(names, arrays[f"{prefix}grad_none"], strict=True) if none}

    if ABSENT in names:
        shape = tuple(int(side) for side in str(arrays[f"{prefix}param_shapes"][names.index(ABSENT)]).split("x"))
        absent = {ABSENT: golden_set().fill(ABSENT, shape)}
    else:
        absent = {}

    def snapshot() -> dict[str, Tensor]:
        values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        return {name: value.squeeze(1) if name.startswith("pros.") and value.ndim == 3 else value
                for name, value in (values | absent).items()}  # fmt: skip

    before = snapshot()
    method.model.loss(stage, pixels, own, template).backward()
    gradients = {name: parameter.grad for name, parameter in parameters.items()} | dict.fromkeys(absent)
    assert_gradients(arrays, prefix, gradients)
    optimizer.step()
    after = snapshot()
    assert_step(arrays, prefix, before, after)
    for name, norm in zip(names, arrays[f"{prefix}param_norm_after"], strict=True):
        assert float(after[name].double().norm()) == pytest.approx(float(norm), rel=FEATURES)
    with torch.no_grad():
        loss = method.model.loss(stage, pixels, own, template)
    assert_golden(loss, arrays[f"{prefix}loss_after_one_step"], what="loss after one step")
    others = set(everything) - {ours(name) for name in names}
    start = filled().model.state_dict()
    assert all(torch.equal(everything[name], start[name]) for name in others)


@pytest.mark.parametrize("stage", STAGES)
def test_trained_parameters_are_the_released_ones(arrays: Compared, stage: Literal[1, 2]) -> None:
    method = filled()
    released = {name for authors in arrays[f"s{stage}_official_trainable"] for name in canonical(str(authors))}
    assert released == {str(name) for name in arrays[f"s{stage}_param_names"]}
    idle = {ABSENT, "pros.generator.vision_model.embeddings.class_embedding"}
    assert set(method.model.stage_parameters(stage)) == {ours(name) for name in released - idle}


def test_schedule(arrays: Compared) -> None:
    expected = arrays["s2_lr_by_epoch_first60"]
    rates = [decayed_rate(ProSConfig.official().learning_rate, epoch) for epoch in range(len(expected))]
    np.testing.assert_allclose(rates, expected, rtol=1e-9)


def test_sampler() -> None:
    sampler = golden_set().json("splits.json")["sampler"]
    domains = torch.tensor(sampler["domain_id_of_item"])
    size = sampler["samples_per_domain"] * len(torch.unique(domains))
    epochs = [sampler[f"{name}_epoch"] for name in ("first", "second", "third")]
    assert official_epoch(domains, size) == sampler["length"] == len(epochs[0])
    expected = list(itertools.chain(*epochs))
    for rounds in (1, 2):  # a larger batch holds several rounds
        drawn = itertools.islice(official_batches(domains, rounds * size, size), len(expected) // (rounds * size))
        got = torch.cat(list(drawn)).tolist()
        assert got == expected[: len(got)]
        assert len(got) > len(expected) - rounds * size


def test_every_array_was_compared(arrays: Compared, request: pytest.FixtureRequest) -> None:
    """Runs last: nothing in the file was left out."""
    assert_all_compared(arrays, request, NOT_COMPARED)
