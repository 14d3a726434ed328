"""Backbones beside transformers' CLIP: features equal to the original packages', and what runs on which of them."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.backbones import sources
from methods.interface import Method, NotApplicableError
from methods.parts.backbone import Backbone, BackboneError, ClipBackbone, PromptBackbone
from methods.parts.capabilities import CAPABILITIES, covers, shortfall
from methods.parts.prompts import PromptTemplate, encode_prompts
from methods.registry import METHODS
from tests.support.tiny_clip import tiny_tokenizer
from tests.support.tiny_families import CONTEXT, OPEN_CLIP, open_clip_folder, randomise, siglip_folder

TEXTS = ["a photo of a cat", "a sketch of a dog and a drawing of a horse", "aircraft carrier"]
OFFERS = {"vit": "tokens", "vit_quick": "tokens", "resnet": "styles"} | dict.fromkeys(
    ("siglip", "coca", "eva"), "features"
)


def load(folder: Path) -> Backbone:
    return sources.load(str(folder), device="cpu", precision="float32")


def pixels(backbone: Backbone, count: int = 3) -> Tensor:
    """Normalised images of coarse squares, so that they differ also behind pooling."""
    squares = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(2 * squares, size=int(backbone.image_size))


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5 of the features' size, and not because all are alike."""
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    assert float((theirs[0] - theirs[1]).abs().max()) > 1e-2 * float(theirs.abs().max())


@pytest.fixture(scope="module")
def open_clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    pytest.importorskip("open_clip")
    made = {}
    for family in OPEN_CLIP:
        folder = tmp_path_factory.mktemp("families") / family
        made[family] = (open_clip_folder(folder, family), folder)
    return made


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("families") / "hf-siglip"
    return siglip_folder(folder), folder


# --- the originals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", OPEN_CLIP)
@torch.no_grad()
def test_open_clips_models_are_theirs(open_clips: dict[str, tuple[Any, Path]], family: str) -> None:
    import open_clip

    model, folder = open_clips[family]
    backbone = load(folder)
    assert (backbone.offers, backbone.name) == (OFFERS[family], f"{folder.parent.name}/{family}")
    images = pixels(backbone)
    close(backbone.encode_images(images), model.encode_image(images, normalize=False))
    if OPEN_CLIP[family]()["text_cfg"].get("hf_tokenizer_name"):
        ids = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    else:  # zeros behind the end of text, as open_clip's own tokenizer writes them
        ids = torch.zeros(len(TEXTS), CONTEXT, dtype=torch.long)
        for row, tokens in enumerate(tiny_tokenizer()(TEXTS)["input_ids"]):
            ids[row, : len(tokens)] = torch.tensor(tokens)
    assert torch.equal(backbone.tokenize(TEXTS), ids)
    close(backbone.encode_texts(TEXTS), model.encode_text(ids, normalize=False))
    assert backbone.logit_scale == pytest.approx(float(model.logit_scale.exp()))
    assert backbone.embed_dim == model.encode_image(images).shape[1]
    assert backbone.preprocessing["mean"] == [0.6, 0.5, 0.4]
    assert backbone.preprocessing["resample"] == "bilinear"


@torch.no_grad()
def test_siglip_is_transformers(siglip: tuple[Any, Path]) -> None:
    model, folder = siglip
    backbone = load(folder)
    assert backbone.offers == "features"
    assert not backbone.causal_text
    images = pixels(backbone)
    close(backbone.encode_images(images), model.get_image_features(pixel_values=images).pooler_output)
    padded = tiny_tokenizer()(TEXTS, padding="max_length", max_length=CONTEXT, return_tensors="pt")["input_ids"]
    close(backbone.encode_texts(TEXTS), model.get_text_features(input_ids=padded).pooler_output)
    assert backbone.logit_scale == pytest.approx(float(torch.tensor(4.0).exp()))
    assert backbone.processing.resize == "height_width"
    assert backbone.preprocessing["mean"] == [0.5, 0.5, 0.5]


@torch.no_grad()
def test_a_resnets_styles_are_those_of_its_stages(open_clips: dict[str, tuple[Any, Path]]) -> None:
    model, folder = open_clips["resnet"]
    backbone = load(folder)
    assert isinstance(backbone, PromptBackbone)
    assert backbone.style_widths == (32, 64, 128, 256)
    images = pixels(backbone)
    features, mu, sigma = backbone.encode_styles(images)
    close(features, model.encode_image(images))
    maps = model.visual.forward_intermediates(images)["image_intermediates"][1:]
    for one, mean, deviation in zip(maps, mu, sigma, strict=True):
        close(mean, one.mean(dim=(2, 3)))
        places = one.shape[2] * one.shape[3]
        close(deviation, (one.var(dim=(2, 3), correction=0) + 2.3e-8 / places).sqrt())
    last, one_mu, _ = backbone.encode_styles(images, layers=1)
    assert torch.equal(last, features)
    assert torch.equal(one_mu[0], mu[3])


# --- identity, copies, errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", OPEN_CLIP)
def test_a_copy_may_be_trained_and_weights_are_in_the_identity(
    open_clips: dict[str, tuple[Any, Path]], family: str
) -> None:
    backbone = load(open_clips[family][1])
    again = load(open_clips[family][1])
    assert backbone.identity == again.identity
    clone = backbone.clone()
    assert clone.identity == backbone.identity
    trained = clone.vision_parameters()
    assert trained
    assert not trained.keys() & clone.text_parameters().keys()
    for value in trained.values():
        value.requires_grad_(True)
    before = clone.encode_images(pixels(clone))
    before.square().mean().backward()
    assert all(value.grad is not None for value in trained.values())
    with torch.no_grad():
        next(iter(trained.values())).add_(0.1)
    assert clone.weights_hash != backbone.weights_hash
    assert backbone.weights_hash == again.weights_hash
    assert not any(module.training for module in clone.model.modules())


def test_batch_norms_statistics_are_in_the_hash_and_stay(open_clips: dict[str, tuple[Any, Path]]) -> None:
    backbone = load(open_clips["resnet"][1])
    before = copy.deepcopy(dict(backbone.model.named_buffers()))
    clone = backbone.clone()
    for value in clone.vision_parameters().values():
        value.requires_grad_(True)
    clone.encode_images(pixels(clone)).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in clone.model.named_buffers())
    clone.model.vision_model.bn1.running_mean.add_(1.0)
    assert clone.weights_hash != backbone.weights_hash


@pytest.mark.parametrize("family", ["siglip", "coca", "resnet"])
def test_a_text_beyond_the_context_is_refused(open_clips: dict[str, tuple[Any, Path]], family: str) -> None:
    with pytest.raises(BackboneError, match=r"the text 'cat cat .* shorten it"):
        load(open_clips[family][1]).tokenize(["a cat", "cat " * 80])


@pytest.mark.parametrize("family", ["vit", "resnet", "coca"])
def test_pickled_weights_are_refused_and_the_command_converts_them(family: str, tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    from benchmarks.backbones.openai_checkpoint import convert

    model = open_clip_folder(tmp_path / "pickled", family, pickled=True)
    with pytest.raises(BackboneError, match=r"only pickled weights.*python -m benchmarks.convert FOLDER OUT"):
        load(tmp_path / "pickled")
    convert(tmp_path / "pickled", tmp_path / "out", tokenizer=str(tmp_path / "pickled"))
    backbone = load(tmp_path / "out")
    with torch.no_grad():
        close(backbone.encode_images(pixels(backbone)), model.encode_image(pixels(backbone), normalize=False))


@pytest.mark.parametrize("form", ["archive", "state dict"])
def test_openais_resnet_becomes_a_folder_of_open_clips(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_clip = pytest.importorskip("open_clip")
    from benchmarks.convert import main

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    vision = open_clip.CLIPVisionCfg(layers=[1, 2, 1, 1], width=16, image_size=64)
    text = open_clip.CLIPTextCfg(context_length=CONTEXT, vocab_size=len(tokenizer), width=128, heads=2, layers=2)
    model = open_clip.CLIP(24, vision, text, quick_gelu=True).eval()
    randomise(model)
    file = tmp_path / "RN50.pt"
    ids = torch.zeros(1, CONTEXT, dtype=torch.long)
    if form == "archive":
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the sizes of a batch are fixed
            torch.jit.save(torch.jit.trace(model, (torch.zeros(1, 3, 64, 64), ids)), file)
    else:
        numbers = {"input_resolution": 64, "context_length": CONTEXT, "vocab_size": len(tokenizer)}
        torch.save({**model.state_dict(), **{name: torch.tensor(n) for name, n in numbers.items()}}, file)
    out = tmp_path / "RN50"
    assert main([str(file), str(out), "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    assert "64 px, embedding 24" in capsys.readouterr().out
    backbone = load(out)
    assert (backbone.offers, backbone.image_size) == ("styles", 64)
    given = backbone.tokenize(TEXTS)
    with torch.no_grad():
        close(backbone.encode_images(pixels(backbone)), model.encode_image(pixels(backbone)))
        close(backbone.encode_ids(given), model.encode_text(given))
    assert backbone.preprocessing["mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])

    whole = json.loads((out / "open_clip_config.json").read_text())
    stated = {**whole, "preprocess_cfg": {"mean": [0.5, 0.25, 0.125], "interpolation": "bilinear"}, "hf_hub": "kept"}
    config = tmp_path / "stated.json"
    config.write_text(json.dumps(stated))
    again = tmp_path / "with_config"
    given = [str(file), str(again), "--tokenizer", str(tmp_path / "tokenizer"), "--config", str(config)]
    assert main(given) == 0
    assert json.loads((again / "open_clip_config.json").read_text()) == stated
    assert load(again).preprocessing["mean"] == [0.5, 0.25, 0.125]
    assert load(again).preprocessing["resample"] == "bilinear"
    capsys.readouterr()
    for part, key in (("vision_cfg", "layers"), ("vision_cfg", "image_size"), ("text_cfg", "width")):
        wrong = copy.deepcopy(stated)
        wrong["model_cfg"][part][key] = [3, 4, 6, 3] if key == "layers" else 224
        config.write_text(json.dumps(wrong))
        assert main([*given[:1], str(tmp_path / "wrong"), *given[2:]]) == 2
        assert f"but its config has {wrong['model_cfg'][part][key]}" in (said := capsys.readouterr().err)
        assert f"{part}.{key}" in said and said.count("\n") == 1
        assert not (tmp_path / "wrong").exists()


def test_timms_config_beside_open_clips_changes_nothing(open_clips: dict[str, tuple[Any, Path]]) -> None:
    folder = open_clips["resnet"][1]
    before = load(folder).identity
    (folder / "config.json").write_text('{"architecture": "resnet50_clip", "num_classes": 1024}')
    try:
        assert load(folder).identity == before
    finally:
        (folder / "config.json").unlink()


def test_a_hub_name_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.backbones.loading.hub_unreachable", lambda name: "no network")
    with pytest.raises(BackboneError, match=r"timm/none is not in the local Hub cache, .*`hf download timm/none`"):
        sources.load("open_clip:timm/none", device="cpu", precision="float32")
    with pytest.raises(BackboneError, match=r"give a folder with open_clip_config\.json, or a Hub name"):
        sources.load(f"open_clip:{tmp_path / 'none'}", device="cpu", precision="float32")
    with pytest.raises(ValueError, match=r"use its Hub name open_clip:timm/resnet50_clip.openai"):
        sources.load("RN50", device="cpu", precision="float32")


def test_weights_of_another_size_are_named(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    folder = tmp_path / "resnet"
    open_clip_folder(folder, "resnet")
    file = folder / "open_clip_config.json"
    file.write_text(file.read_text().replace('"layers": [1, 2, 1, 1]', '"layers": [1, 1, 1, 1]'))
    with pytest.raises(BackboneError, match=r"image weight layer2\.1\..* expected not part of the tower"):
        load(folder)


# --- what runs on what ------------------------------------------------------------------------------------------------


def test_capabilities_are_ordered() -> None:
    for offered in CAPABILITIES:
        for needed in CAPABILITIES:
            fits = CAPABILITIES.index(offered) >= CAPABILITIES.index(needed)
            assert covers(offered, needed) is fits
            assert bool(shortfall("m", needed, "b", offered)) is not fits


RUN = {
    "features": {
        "random",
        "constant",
        "raw_pixel",
        "zero_shot",
        "zero_shot_domain",
        "full_finetune",
        "sre_clip",
        "linear_probe",
        "metric_head",
        "clip_adapter",
        "tip_adapter",
        "tip_adapter_f",
        "cmkd",
    },
    "styles": {"coop", "lora", "ad_clip", "dapl", "cocoop"},
}


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_is_made_on_what_offers_enough(open_clips: dict[str, tuple[Any, Path]], name: str) -> None:
    method: type[Method] = METHODS.get(name)
    needs = next((step for step, names in RUN.items() if name in names), "tokens")
    assert method.needs == needs
    for family in ("vit", "resnet", "siglip"):
        backbone = load(open_clips[family][1])
        if covers(backbone.offers, method.needs):
            method(backbone)
        else:
            with pytest.raises(NotApplicableError, match=f"^{method.card.name} needs {needs}, .*choose another"):
                method(backbone)


def test_a_setting_may_need_more(open_clips: dict[str, tuple[Any, Path]]) -> None:
    backbone = load(open_clips["resnet"][1])
    for name, changes in (("sre_clip", {"attention": "patches"}), ("coop", {"train_projections": True})):
        method = METHODS.get(name)
        with pytest.raises(NotApplicableError, match=f"{name} needs tokens"):
            method(backbone, method.Config(**changes))


@torch.no_grad()
def test_a_text_tower_that_is_not_causal_takes_the_plain_path(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(tiny_backbone, PromptBackbone)
    prompts = PromptTemplate.build(tiny_backbone, ["cat", "hot air balloon"], "a photo of a {name}.")
    plain = encode_prompts(tiny_backbone, prompts, shared_prefix=False, cut=False)
    monkeypatch.setattr(type(tiny_backbone), "causal_text", False)
    assert torch.equal(encode_prompts(tiny_backbone, prompts), plain)


def test_clip_is_the_whole_interface(tiny_backbone: Backbone) -> None:
    assert isinstance(tiny_backbone, ClipBackbone)
    assert tiny_backbone.causal_text
    features, mu, _ = tiny_backbone.encode_styles(pixels(tiny_backbone))
    torch.testing.assert_close(features, tiny_backbone.encode_images(pixels(tiny_backbone)), rtol=1e-5, atol=1e-5)
    assert [one.shape[1] for one in mu] == list(tiny_backbone.style_widths)
