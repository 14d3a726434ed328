"""The operations and bytes that a plan expects are those that torch counts; recipes and warnings follow from them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import CLIPConfig

from benchmarks.recipes import paper_config
from benchmarks.run import main
from benchmarks.runner import listing, sizing
from benchmarks.runner.backbone_facts import BackboneFacts
from benchmarks.runner.plan import make_config
from benchmarks.runner.settings import Settings, recipe_file, resolve
from benchmarks.speed import training
from methods.parts.backbone import Backbone, ClipBackbone
from methods.parts.prompts import PromptTemplate, encode_prompts
from methods.registry import METHODS
from methods.training.loop import SDPBackend, sdpa_kernel
from tests.support.tiny_clip import tiny_tokenizer

IMAGE, PATCH, WIDTH, LAYERS, HEADS = 64, 8, 192, 4, 3
TEXT_WIDTH, TEXT_HEADS = 128, 2


@pytest.fixture(scope="module")
def clip() -> ClipBackbone:
    """A random CLIP large enough that its blocks are nearly all of the work."""
    tokenizer = tiny_tokenizer()
    vision = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": HEADS}
    text = {"hidden_size": TEXT_WIDTH, "intermediate_size": 4 * TEXT_WIDTH, "num_attention_heads": TEXT_HEADS}
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = CLIPConfig(
        vision_config={**vision, "num_hidden_layers": LAYERS, "image_size": IMAGE, "patch_size": PATCH},
        text_config={
            **text,
            **special,
            "num_hidden_layers": LAYERS,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 77,
        },
        projection_dim=96,
    )
    return Backbone.from_config(config, seed=0, tokenizer=tokenizer)


def towers_of(clip: ClipBackbone) -> sizing.Towers:
    return sizing.Towers(WIDTH, LAYERS, HEADS, clip.grid**2 + 1, TEXT_WIDTH, LAYERS, TEXT_HEADS)


class Kept:
    """Bytes that autograd keeps for the backward pass, each tensor's memory once, parameters left out."""

    def __init__(self, clip: ClipBackbone) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in clip.model.parameters()}
        self.bytes: dict[int, int] = {}
        self.tensors: list[torch.Tensor] = []

    def __enter__(self) -> Kept:
        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.weights:
                self.bytes[storage.data_ptr()] = storage.nbytes()
                self.tensors.append(tensor)  # so that no later tensor gets its address
            return tensor

        self.hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)


@pytest.mark.parametrize("kind", ["through", "trained"])
@pytest.mark.parametrize("images", [3, 9])
def test_bytes_of_an_image_are_those_that_autograd_keeps(kind: Any, images: int, clip: ClipBackbone) -> None:
    own = clip.clone()
    for parameter in own.vision_parameters().values():
        parameter.requires_grad_(kind == "trained")
    tokens = own.image_tokens(torch.rand(images, 3, IMAGE, IMAGE)).detach().requires_grad_(kind == "through")
    with sdpa_kernel(SDPBackend.MATH), Kept(own) as kept:
        own.run_vision(tokens)
    expected = towers_of(clip).vision(images, kind).saved_bytes("float32")
    assert sum(kept.bytes.values()) == pytest.approx(expected, rel=0.15)


def test_no_bytes_are_kept_without_gradients(clip: ClipBackbone) -> None:
    towers = towers_of(clip)
    assert towers.vision(7, "encode").saved_bytes("float32") == 0
    assert 0 < towers.vision(7, "through").saved_bytes("bf16") < towers.vision(7, "through").saved_bytes("float32")


STAGED = ["pros", "ucdr_adapter", "ad_clip", "coop", "vpt_shallow", "vpt_deep", "bitfit", "ln_tuning", "full_finetune"]


@pytest.mark.parametrize("name", STAGED)
def test_operations_of_a_step_are_those_that_torch_counts(
    name: str, clip: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes, batch = 12, 10
    lengths = [len(clip.token_ids(name)) for name in training.class_list()[0][:classes]]
    monkeypatch.setattr(sizing, "NAME_TOKENS", sum(lengths) / classes)
    method = METHODS.get(name)
    changes = training.config_changes(method, training.Settings(batch_size=batch, classes=classes, steps=1))
    data = training.training_data(24, classes, IMAGE, 0)
    fit = training.fit_once(name, changes, clip, data, seed=0, count_work=True)
    config = method.Config(**changes)
    expected = sizing.steps_of(name, config, towers_of(clip), classes, training.DOMAINS)
    assert expected is not None and len(expected) == len(fit)
    for step, (stage, run) in zip(expected, fit.items(), strict=True):
        assert step.stage in (stage, "training")
        # the last of few blocks computes one token alone, and patches, projections and losses cost something
        assert run.first.flops == pytest.approx(step.flops, rel=0.3), stage


@pytest.mark.parametrize("name", sizing.RECIPE_WORK)
def test_hours_of_a_recipe_follow_from_operations(name: str) -> None:
    settings = resolve({}, recipe_file(name))
    (method,), work = settings.methods, sizing.RECIPE_WORK[name]
    given = {key.rpartition(".")[2]: value for key, value in settings.set}
    config = make_config(METHODS.get(method), settings, given, paper_config(method, settings.datasets[0]))
    hours, _ = sizing.recipe_hours(method, config, work, settings.precision, sizing.ASSUMED[settings.precision][0])
    assert settings.gpu_hours_each_fit == pytest.approx(hours, rel=0.2)


def test_a_measured_rate_replaces_the_assumed_one(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    assert sizing.rate("bf16", file) == sizing.ASSUMED["bf16"]
    step = {"part": "step", "ours": {"flops": 3e12, "s": 0.02}}
    facts: dict[str, Any] = {"precision": "bf16", "quick": False, "steps": [step]}
    facts["environment"] = {"hardware": {"gpu": "Card"}}
    file.write_text(json.dumps(facts))
    assert sizing.rate("bf16", file) == (150.0, "measured, Card")
    assert sizing.rate("float32", file) == sizing.ASSUMED["float32"]
    file.write_text(json.dumps({**facts, "quick": True}))
    assert sizing.rate("bf16", file) == sizing.ASSUMED["bf16"]


def test_many_classes_are_checkpointed() -> None:
    config, large = METHODS.get("ad_clip").Config(), sizing.PUBLISHED["ViT-L/14"]
    (few,), (many,) = (sizing.steps_of("ad_clip", config, large, count, 2) or () for count in (65, 345))
    weights = sizing.PUBLISHED_MIB["ViT-L/14"]
    kept = sum(one.saved_bytes("float32") for one in many.passes if one.text)
    assert 20 * sizing.GIB < kept < 32 * sizing.GIB, "about 25 GiB without checkpoints"
    assert few.gib(weights, "float32") < 24 and many.gib(weights, "float32") < 24


# --- what a dry run says of memory ------------------------------------------------------------------------------------


def dry_run(folder: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> list[str]:
    given = ["--datasets", "tiny", "--protocols", "uda", "--preset", "smoke", "--device", "cpu", "--dry-run"]
    assert main([*given, "--backbone", str(folder), "--jobs", "1", "--out", str(out), *more]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("memory")]


def test_a_dry_run_names_what_does_not_fit(
    tiny_folder: Path, tmp_path: Path, tiny_dataset: type, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    methods = ("--methods", "pros,full_finetune,coop,zero_shot")
    assert dry_run(tiny_folder, tmp_path, capsys, *methods) == [], "this machine has room for a tiny CLIP"
    monkeypatch.setattr("benchmarks.runner.listing.device_gib", lambda device, settings: 0.1)
    lines = dry_run(tiny_folder, tmp_path, capsys, *methods)
    assert [line.split()[1] for line in lines] == ["pros", "full_finetune", "coop"]
    assert all("on tiny takes about 0." in line and "cpu has 0.1 GiB" in line for line in lines)
    assert lines[0].endswith("(--set pros.batch_size=N, pros.stage1_batch_size=N) or --precision bf16")
    assert "float32" in lines[1] and lines[1].endswith("(--set full_finetune.batch_size=N) or --precision bf16")
    rounded = dry_run(tiny_folder, tmp_path, capsys, *methods, "--precision", "bf16")
    assert all("bf16)" in line and line.endswith("batch_size=N)") for line in rounded)


def test_a_larger_batch_needs_more(
    tiny_folder: Path, tmp_path: Path, tiny_dataset: type, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = dry_run(tiny_folder, tmp_path, capsys, "--methods", "vpt_deep", "--set", "batch_size=100000000")
    assert line.startswith("memory  vpt_deep on tiny takes about ") and "e+" not in line


def test_sizes_of_a_backbone_are_known_without_it(clip: ClipBackbone) -> None:
    facts = BackboneFacts.of(clip)
    assert facts.towers is not None
    assert sizing.Towers(**facts.towers) == towers_of(clip)
    json.dumps(facts.towers)


def test_memory_is_that_of_the_gpu_or_a_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(total_memory=24 * 2**30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: gpu)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=64 * 2**30))
    assert listing.device_gib("cuda:1", Settings(jobs=4)) == 24
    assert listing.device_gib("cpu", Settings(jobs=4)) == 16
    assert listing.device_gib("xpu", Settings()) is None


def test_bytes_of_prompts_are_those_that_autograd_keeps(clip: ClipBackbone) -> None:
    """AD-CLIP's: a context of each image before every class."""
    images, classes, context = 3, 8, 6
    names = [f"cat {number}" for number in range(classes)]
    prompts = PromptTemplate.build(clip, names, "{context} {name}.", context)
    given = torch.randn(images, context, TEXT_WIDTH, requires_grad=True)
    with Kept(clip) as kept:
        encode_prompts(clip, prompts, given)
    towers, length = towers_of(clip), prompts.longest + 1 - prompts.prefix_length
    passes = (
        towers.text(images, prompts.prefix_length, "through"),
        towers.text(images * classes, length, "through", behind=prompts.prefix_length),
    )
    assert sum(kept.bytes.values()) == pytest.approx(sum(one.saved_bytes("float32") for one in passes), rel=0.4)
