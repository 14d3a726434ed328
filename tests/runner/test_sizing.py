"""The operations and bytes that a plan expects are those that torch counts; recipes and warnings follow from them."""

from __future__ import annotations

import json
import subprocess
import sys
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
from methods.interface import TrainingData
from methods.parts.backbone import Backbone, ClipBackbone, TextTower, VisionTower
from methods.parts.prompts import PromptTemplate, encode_prompts, suffix_bytes
from methods.registry import METHODS
from methods.training.image_text import OwnClipMethod
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

    def __init__(self, *clips: Backbone) -> None:
        self.weights = {p.untyped_storage().data_ptr() for clip in clips for p in clip.model.parameters()}
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


STAGED = [
    *("pros", "ucdr_adapter", "ad_clip", "coop", "vpt_shallow", "vpt_deep", "bitfit", "ln_tuning", "full_finetune"),
    *("sketch_lvm", "cocoop", "maple", "ivlp", "promptsrc", "dapl", "pda", "cmkd", "tip_adapter_f", "lora"),
]


CLASSES, BATCH = 12, 10


def changes_of(name: str, steps: int = 1) -> dict[str, Any]:
    """Changes to a method's config: batches of BATCH images, so many timed steps."""
    settings = training.SpeedSettings(batch_size=BATCH, classes=CLASSES, steps=steps)
    return training.config_changes(METHODS.get(name), settings)


def expected_steps(
    name: str, changes: dict[str, Any], clip: ClipBackbone, monkeypatch: pytest.MonkeyPatch, *, target: bool = True
) -> list[sizing.Step]:
    """What sizing says of a method's steps, given the length of the class names."""
    lengths = [len(clip.token_ids(name)) for name in training.class_list()[0][:CLASSES]]
    monkeypatch.setattr(sizing, "NAME_TOKENS", sum(lengths) / CLASSES)
    config = METHODS.get(name).Config(**changes)
    steps = sizing.steps_of(name, config, towers_of(clip), CLASSES, training.DOMAINS, target=target)
    assert steps is not None
    return steps


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in STAGED),
        *((name, {"augment": False}) for name in ("promptsrc", "cocoop", "dapl")),
        *((name, {"augment": True}) for name in ("linear_probe", "metric_head", "clip_adapter", "coop")),
        ("coop", {"train_projections": True}),
        ("pda", {"target_weight": 0.0}),
        ("cmkd", {"target_weight": 0.0, "teacher_weight": 0.0}),
        ("dapl", {"class_specific": True}),
        ("dapl", {"domain_words": True}),
        ("lora", {"vision": False}),
        ("full_finetune", {"train_text": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(f"{key}={of}" for key, of in value.items()),
)
def test_operations_of_a_step_are_those_that_torch_counts(
    name: str, settings: dict[str, Any], clip: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**changes_of(name), **settings}
    data = training.training_data(24, CLASSES, IMAGE, 0)
    fit = training.fit_once(name, changes, clip, data, seed=0, count_work=True)
    expected = expected_steps(name, changes, clip, monkeypatch)
    assert len(expected) == len(fit)
    for step, (stage, run) in zip(expected, fit.items(), strict=True):
        assert step.stage == stage
        # the last of few blocks computes one token alone, and patches, projections and losses cost something
        assert run.first.flops == pytest.approx(step.flops, rel=0.3), stage


@pytest.mark.parametrize("name", ["dapl", "pda", "cmkd"])
def test_operations_of_a_step_without_target_images(
    name: str, clip: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of another training domain take their place, but in DAPL, which then has no prompts of a target."""
    changes = changes_of(name)
    shown = training.training_data(12 * training.DOMAINS, CLASSES, IMAGE, 0)
    data = TrainingData(
        protocol="speed",
        images=shown.images,
        labels=shown.labels,
        domains=shown.domains,
        class_names=shown.class_names,
        domain_names=shown.domain_names,
        select="last",
    )
    (run,) = training.fit_once(name, changes, clip, data, seed=0, count_work=True).values()
    (step,) = expected_steps(name, changes, clip, monkeypatch, target=False)
    assert run.first.flops == pytest.approx(step.flops, rel=0.3)


@pytest.mark.parametrize("name", ["cocoop", "maple", "promptsrc", "pda", "dapl", "cmkd", "sketch_lvm", "lora"])
def test_bytes_of_a_step_are_those_that_autograd_keeps(
    name: str, clip: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, changes, kept = METHODS.get(name), changes_of(name), []
    batch_loss = method.batch_loss

    def watched(self: Any, *given: Any) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH), Kept(self.backbone, self.clip) as step:
            loss: torch.Tensor = batch_loss(self, *given)
        kept.append(sum(step.bytes.values()))
        return loss

    monkeypatch.setattr(method, "batch_loss", watched)
    training.fit_once(name, changes, clip, training.training_data(24, CLASSES, IMAGE, 0), seed=0, count_work=False)
    (step,) = expected_steps(name, changes, clip, monkeypatch)
    assert kept[0] == pytest.approx(sum(one.saved_bytes("float32") for one in step.passes), rel=0.25)


RUNS = [name for name in STAGED if name not in ("pros", "ucdr_adapter", "ad_clip")]


@pytest.mark.parametrize("name", RUNS)
def test_passes_of_a_step_are_the_runs_of_the_towers(
    name: str, clip: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which sequences run, how long they are, and whether gradients go through them, teachers and target images too."""
    method, changes, losses = METHODS.get(name), changes_of(name), []
    images: list[tuple[int, int, bool]] = []
    prefixes: list[tuple[int, int, bool]] = []
    suffixes: list[int] = []
    batch_loss, run = method.batch_loss, VisionTower.run
    run_prefix, run_after_prefix = TextTower.run_prefix, TextTower.run_after_prefix

    def watched_loss(self: Any, *given: Any) -> Any:
        losses.append(None)
        loss = batch_loss(self, *given)
        losses.append(loss)
        return loss

    def of_first_step() -> bool:
        return len(losses) == 1

    def watched_run(self: Any, tokens: torch.Tensor, **named: Any) -> torch.Tensor:
        hidden = run(self, tokens, **named)
        if of_first_step():
            images.append((*tokens.shape[:2], hidden.requires_grad))
        return hidden

    def watched_prefix(self: Any, prefix: torch.Tensor, **named: Any) -> Any:
        states = run_prefix(self, prefix, **named)
        if of_first_step():
            prefixes.append((*prefix.shape[:2], states[-1].keys.requires_grad))
        return states

    def watched_suffix(self: Any, *given: Any) -> torch.Tensor:
        read = run_after_prefix(self, *given)
        if of_first_step():
            suffixes.append(read.shape[0] * read.shape[1])
        return read

    monkeypatch.setattr(method, "batch_loss", watched_loss)
    monkeypatch.setattr(VisionTower, "run", watched_run)
    monkeypatch.setattr(TextTower, "run_prefix", watched_prefix)
    monkeypatch.setattr(TextTower, "run_after_prefix", watched_suffix)
    training.fit_once(name, changes, clip, training.training_data(24, CLASSES, IMAGE, 0), seed=0, count_work=False)
    (step,) = expected_steps(name, changes, clip, monkeypatch)
    runs = [(one.sequences, one.tokens, one.kind != "encode") for one in step.passes if not one.text]
    shared = [(p.sequences, p.tokens, True) for p in step.passes if p.text and p.keys == p.tokens]
    assert sorted(images) == sorted(runs)
    assert prefixes == shared
    assert sum(suffixes) == sum(one.sequences for one in step.passes if one.text and one.keys > one.tokens)


# --- which methods are described --------------------------------------------------------------------------------------


def test_every_trained_method_is_described_or_trains_on_stored_features() -> None:
    ours = [entry.name for entry in METHODS.entries() if str(entry.target).startswith("methods.")]
    trained = {name for name in ours if METHODS.get(name).trained}
    assert not set(sizing.DESCRIBED) & set(sizing.STORED_FEATURES)
    assert {*sizing.DESCRIBED, *sizing.STORED_FEATURES} == trained
    assert set(STAGED) == set(sizing.DESCRIBED), "the operations of each are compared with counted ones"
    for name in trained:
        steps = sizing.steps_of(name, METHODS.get(name).Config(), sizing.PUBLISHED["ViT-B/32"], 65, 3)
        assert (steps is None) == (name in sizing.STORED_FEATURES), name


@pytest.mark.parametrize("name", sizing.STORED_FEATURES)
def test_more_steps_on_stored_features_encode_no_more(
    name: str, clip: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    for tower in (VisionTower, TextTower):
        for way in ("run", "run_layers", "run_leading", "run_prefix", "run_after_prefix"):
            if hasattr(tower, way):
                monkeypatch.setattr(tower, way, watch(getattr(tower, way), encoded))
    data, sums = training.training_data(24, CLASSES, IMAGE, 0), []
    for steps in (1, 4):
        encoded.clear()
        training.fit_once(name, changes_of(name, steps), clip, data, seed=0, count_work=False)
        sums.append(sum(encoded))
    assert sums[0] == sums[1] >= len(data.images)


def watch(run: Any, encoded: list[int]) -> Any:
    """``run`` of a tower, which notes how many sequences it is given."""

    def watched(self: Any, given: Any, *rest: Any, **named: Any) -> Any:
        encoded.append(len(given))
        return run(self, given, *rest, **named)

    return watched


def test_methods_of_all_class_names_are_those_that_label_so() -> None:
    """A class without images is told apart by these alone."""
    data: Any = SimpleNamespace(labels=torch.tensor([0, 2, 2]), class_names=("cat", "dog", "horse"))
    asked = {name: METHODS.get(name) for name in sizing.DESCRIBED if hasattr(METHODS.get(name), "labelled")}
    assert len(asked) > 15
    counts = {name: len(method.labelled(None, data)[0]) for name, method in asked.items()}
    assert {name for name, count in counts.items() if count == 3} == {*sizing.ALL_NAMES} - {"ad_clip"}


def test_methods_with_a_clip_of_their_own_are_known() -> None:
    """Its weights count beside the backbone's."""
    towers = sizing.PUBLISHED["ViT-B/32"]
    for name in sizing.DESCRIBED:
        method = METHODS.get(name)
        steps = sizing.steps_of(name, method.Config(), towers, 65, 3, weights_mib=4.0) or []
        assert [step.copied for step in steps] == [2**20 * issubclass(method, OwnClipMethod)] * len(steps), name


@pytest.mark.parametrize(
    ("name", "settings"), [("maple", {}), ("maple", {"depth": 2}), ("pda", {"coupled": 3}), ("pda", {"coupled": 0})]
)
def test_values_of_the_maps_between_the_towers_are_counted(
    name: str, settings: dict[str, Any], clip: ClipBackbone
) -> None:
    method = METHODS.get(name)
    config = method.Config(**settings)
    built = method(clip, config, clip.device).build(0).get("coupling.weight", torch.empty(0))
    (step,) = sizing.steps_of(name, config, towers_of(clip), CLASSES, 3) or []
    assert step.trained == built.numel()


@pytest.mark.parametrize(
    ("template", "context"),
    [
        *(("a photo of a {name}", 0), ("a photo of a {name}.", 2), ("a photo of a {name}.", 6)),
        *(("{context} {name}.", 16), ("a photo of {name} from {context} domain.", 4)),
    ],
)
def test_tokens_of_a_class_are_those_of_its_prompt(
    template: str, context: int, clip: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["cat", "sketch"]
    (length,) = {len(clip.token_ids(name)) for name in names}
    monkeypatch.setattr(sizing, "NAME_TOKENS", length)
    make = PromptTemplate.build if "{context}" in template or not context else PromptTemplate.opening
    prompts = make(clip, names, template, context)
    prefix, suffix = sizing._prompt_tokens(template, context)
    assert (prefix, suffix) == (prompts.prefix_length, prompts.longest + 1 - prompts.prefix_length)


def test_sizing_needs_no_torch() -> None:
    code = "import sys, benchmarks.runner.sizing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_prompts_are_checkpointed_where_the_plan_expects_it(
    precision: Any, clip: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes that both compare with the bound are the same ones."""
    images, context, names = 3, 6, [f"{number} cat" for number in range(8)]
    monkeypatch.setattr(clip, "precision", precision)
    prompts = PromptTemplate.build(clip, names, "{context} {name}.", context)
    (longest,) = {len(clip.token_ids(name)) for name in names}
    monkeypatch.setattr(sizing, "NAME_TOKENS", longest)
    config = SimpleNamespace(template="{context} {name}.", context_tokens=context)
    passes = sizing._texts(config, towers_of(clip), len(names), contexts=images)
    expected = suffix_bytes(clip, prompts, images) * len(names)
    assert sum(one.checkpoint_bytes(precision) for one in passes) == expected
    assert towers_of(clip).vision(images, "trained").checkpoint_bytes(precision) == 0


# --- what a dry run says of memory ------------------------------------------------------------------------------------


def dry_run(folder: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> list[str]:
    given = ["--datasets", "tiny", "--protocols", "uda", "--preset", "smoke", "--device", "cpu", "--dry-run"]
    assert main([*given, "--backbone", str(folder), "--jobs", "1", "--out", str(out), *more]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("memory")]


def test_a_dry_run_names_what_does_not_fit(
    tiny_folder: Path, tmp_path: Path, tiny_dataset: type, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    methods = ("--methods", "pros,full_finetune,coop,dapl,clip_adapter,zero_shot")
    assert dry_run(tiny_folder, tmp_path, capsys, *methods) == [], "this machine has room for a tiny CLIP"
    monkeypatch.setattr("benchmarks.runner.listing.device_gib", lambda device, settings: 0.1)
    lines = dry_run(tiny_folder, tmp_path, capsys, *methods)
    assert [line.split()[1] for line in lines] == ["pros", "full_finetune", "coop", "dapl"]
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
