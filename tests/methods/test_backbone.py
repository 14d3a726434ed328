"""Backbone: equal to transformers' CLIPModel, runs on given tokens, and refuses what it cannot use."""

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel

from methods.parts.backbone import Backbone, BackboneError, ClipBackbone, VisionTower, insert_prompts, token_statistics
from tests.support.tiny_clip import tiny_clip_folder, tiny_config, tiny_model, tiny_tokenizer

TEXTS = ["a photo of a cat", "a sketch of a hot air balloon from clipart domain.", "dog"]


def pixels(count: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * float(expected.detach().abs().max()))


# --- equal to the stock model ----------------------------------------------------------------------------------------


def test_sizes_come_from_the_config(tiny_backbone: Backbone) -> None:
    sizes = [
        tiny_backbone.vision_width,
        tiny_backbone.vision_layers,
        tiny_backbone.patch_size,
        tiny_backbone.image_size,
        tiny_backbone.grid,
        tiny_backbone.embed_dim,
        tiny_backbone.text_width,
        tiny_backbone.text_layers,
        tiny_backbone.context_length,
    ]
    assert sizes == [32, 2, 8, 32, 4, 24, 32, 2, 64]
    wide = Backbone.from_config(
        tiny_config(vision={"hidden_size": 48, "num_hidden_layers": 3, "patch_size": 16}, text={"hidden_size": 16}),
        seed=1,
    )
    assert (wide.vision_width, wide.vision_layers, wide.grid, wide.text_width) == (48, 3, 2, 16)
    assert wide.encode_images(pixels()).shape == (3, 24)


def test_features_equal_the_stock_model(tiny_backbone: Backbone, tiny_folder: Path) -> None:
    stock = CLIPModel.from_pretrained(tiny_folder)
    stock.eval()
    images = tiny_backbone.normalize(pixels())
    ids = tiny_backbone.tokenize(TEXTS)
    with torch.no_grad():
        close(tiny_backbone.encode_images(images), stock.get_image_features(images).pooler_output)
        close(tiny_backbone.encode_texts(TEXTS), stock.get_text_features(ids).pooler_output)
        close(tiny_backbone.encode_texts(TEXTS, batch_size=2), stock.get_text_features(ids).pooler_output)
        states = tiny_backbone.run_vision_layers(tiny_backbone.image_tokens(images))
        hidden = stock.vision_model(images, output_hidden_states=True).hidden_states
    assert len(states) == tiny_backbone.vision_layers
    for ours, theirs in zip(states, hidden[1:], strict=True):
        close(ours, theirs)


def test_gradients_equal_the_stock_model(tiny_folder: Path) -> None:
    ours, stock = Backbone.load(tiny_folder).clone(), CLIPModel.from_pretrained(tiny_folder)
    stock.eval()
    ours.model.requires_grad_(True)
    images, ids = pixels(), ours.tokenize(TEXTS)
    (ours.encode_images(images) @ ours.encode_ids(ids).T).square().mean().backward()
    (
        stock.get_image_features(images).pooler_output @ stock.get_text_features(ids).pooler_output.T
    ).square().mean().backward()
    theirs = dict(stock.named_parameters())
    compared = 0
    for name, parameter in ours.model.named_parameters():
        if name.endswith("k_proj.bias") or theirs[name].grad is None:  # key biases have a mathematically zero gradient
            continue
        close(parameter.grad, theirs[name].grad, 1e-4)
        compared += 1
    assert compared > 60


def test_texts_are_read_where_transformers_reads_them(tiny_backbone: Backbone) -> None:
    ids = torch.tensor([[5, 9, 7, 9, 0], [9, 1, 1, 1, 1]])
    for eos in (9, 2):  # 2: an old config, largest id
        config = tiny_config(text={"eos_token_id": eos, "vocab_size": 10})
        model = tiny_model(config=config)
        with torch.no_grad():
            close(ClipBackbone(model).encode_ids(ids), model.get_text_features(ids).pooler_output)
    with pytest.raises(BackboneError, match="no end-of-text token"):
        tiny_backbone.eot_positions(torch.tensor([[1, 2, 3]]))


# --- vision tower on given tokens ------------------------------------------------------------------------------------


@torch.no_grad()
def test_reading_one_token_equals_reading_all(tiny_backbone: Backbone) -> None:
    tokens = insert_prompts(tiny_backbone.image_tokens(pixels()), torch.randn(2, 32))
    assert tokens.shape == (3, 1 + 2 + 16, 32)
    hidden = tiny_backbone.run_vision(tokens)
    for index in (0, 1, 18):
        close(tiny_backbone.run_vision(tokens, read=index), hidden[:, index])
    close(tiny_backbone.run_vision_layers(tokens)[-1], hidden)


@torch.no_grad()
def test_image_tokens_are_class_token_patches_and_positions(tiny_backbone: Backbone) -> None:
    images = pixels()
    patches = tiny_backbone.patch_tokens(images)
    assert patches.shape == (3, 16, 32)
    token = torch.randn(32)
    tokens = tiny_backbone.image_tokens(images, class_token=token)
    close(tokens[:, 0], (token + tiny_backbone.vision_positions[0]).expand(3, -1))
    close(tokens[:, 1:], patches + tiny_backbone.vision_positions[1:])
    hidden = tiny_backbone.run_vision(tokens, read=0)
    weight = torch.randn(24, 32)
    close(
        tiny_backbone.encode_images(images, class_token=token, projection=weight),
        F.linear(tiny_backbone.vision.norm(hidden), weight),
    )


@torch.no_grad()
def test_deep_prompts_replace_the_prompt_tokens_before_each_block(tiny_backbone: Backbone) -> None:
    first, second = torch.randn(2, 32), torch.randn(1, 2, 32)
    tokens = insert_prompts(tiny_backbone.image_tokens(pixels()), first)
    after_first = tiny_backbone.run_vision_layers(tokens)[0]
    after_first[:, 1:3] = second[0]
    block = tiny_backbone.model.vision_model.encoder.layers[1]
    expected = block(after_first, None)
    close(tiny_backbone.run_vision(tokens, deep_prompts=second), expected)
    close(tiny_backbone.run_vision(tokens, deep_prompts=second[:, None].expand(-1, 3, -1, -1), read=0), expected[:, 0])
    with pytest.raises(BackboneError, match="deep_prompts has 3 rows, this tower needs 1"):
        tiny_backbone.run_vision(tokens, deep_prompts=torch.randn(3, 2, 32))


@torch.no_grad()
def test_token_statistics_are_mean_and_biased_deviation_over_tokens(tiny_backbone: Backbone) -> None:
    states = tiny_backbone.run_vision_layers(tiny_backbone.image_tokens(pixels()))
    mu, sigma = token_statistics(states)
    assert mu.shape == sigma.shape == (2, 3, 32)
    close(mu[1], states[1].mean(dim=1))
    close(sigma[1], states[1].std(dim=1, correction=0))


def test_a_random_tower_is_seeded_and_trainable(tiny_backbone: Backbone) -> None:
    config = tiny_backbone.model.config.vision_config
    state = torch.get_rng_state()
    towers = [VisionTower.random(config, layers=3, seed=seed) for seed in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), state)
    assert config.num_hidden_layers == 2
    assert towers[0].layers == 3
    weights = [tower.state_dict()["vision_model.embeddings.patch_embedding.weight"] for tower in towers]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    towers[0].norm(towers[0].run(towers[0].image_tokens(pixels()), read=0)).square().sum().backward()
    assert towers[0].class_token.grad is not None


# --- frozen, clones, identity ----------------------------------------------------------------------------------------


def test_the_backbone_is_frozen_and_gradients_reach_what_is_handed_in(tiny_backbone: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in tiny_backbone.model.parameters())
    assert not tiny_backbone.model.training
    prompts = torch.randn(2, 32, requires_grad=True)
    token = tiny_backbone.class_token.clone().requires_grad_(True)
    weight = tiny_backbone.vision_projection.clone().requires_grad_(True)
    tokens = insert_prompts(tiny_backbone.image_tokens(pixels(), class_token=token), prompts)
    tiny_backbone.readout(tiny_backbone.run_vision(tokens, read=1), projection=weight).square().sum().backward()
    for tensor in (prompts, token, weight):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in tiny_backbone.model.parameters())


def test_a_clone_trains_without_touching_its_origin(tiny_backbone: Backbone) -> None:
    before = tiny_backbone.weights_hash
    tower = tiny_backbone.clone()
    assert tower.weights_hash == before
    for parameter in tower.vision_parameters().values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(tower.vision_parameters().values(), lr=0.1)
    tower.encode_images(pixels()).square().sum().backward()
    optimizer.step()
    assert tower.weights_hash != before
    assert tiny_backbone.weights_hash == before
    assert set(tower.vision_parameters()) | set(tower.text_parameters()) | {"logit_scale"} == set(
        dict(tower.model.named_parameters())
    )
    again = tiny_backbone.clone()
    again.load_parameters(tower.vision_parameters())
    assert again.weights_hash == tower.weights_hash
    with pytest.raises(BackboneError, match="weight nonsense"):
        again.load_parameters({"nonsense": torch.zeros(1)})


def test_the_weights_hash_sees_every_weight(tiny_folder: Path) -> None:
    backbone = Backbone.load(tiny_folder).clone()
    seen = {backbone.weights_hash}
    assert backbone.weights_hash in seen
    for name in ("logit_scale", "vision_model.embeddings.class_embedding", "text_projection.weight"):
        with torch.no_grad():
            dict(backbone.model.named_parameters())[name].view(-1)[-1] += 1e-3
        assert backbone.weights_hash not in seen
        seen.add(backbone.weights_hash)
    assert Backbone.load(tiny_folder).weights_hash == Backbone.load(tiny_folder).weights_hash


def test_from_config_is_seeded() -> None:
    hashes = [Backbone.from_config(tiny_config(), seed=seed).weights_hash for seed in (3, 3, 4)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_lora_adapters_in_a_clone_are_used(tiny_backbone: Backbone) -> None:
    clone = tiny_backbone.clone()
    inject_adapter_in_model(
        LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"], init_lora_weights=False), clone.model
    )
    assert not torch.allclose(clone.encode_images(pixels()), tiny_backbone.encode_images(pixels()), rtol=1e-3)
    (clone.encode_images(pixels()).sum() + clone.encode_texts(TEXTS).sum()).backward()
    adapters = {name: tensor for name, tensor in clone.model.named_parameters() if "lora_" in name}
    assert len(adapters) == 2 * 4 * (clone.vision_layers + clone.text_layers)
    assert all(tensor.grad is not None for tensor in adapters.values())


@torch.no_grad()
def test_bf16_stays_close_and_returns_float32(tiny_folder: Path, tiny_backbone: Backbone) -> None:
    half = Backbone.load(tiny_folder, precision="bf16")
    images, texts = half.encode_images(pixels()), half.encode_texts(TEXTS)
    assert images.dtype == texts.dtype == torch.float32
    assert half.run_vision(half.image_tokens(pixels())).dtype == torch.float32
    for ours, exact in ((images, tiny_backbone.encode_images(pixels())), (texts, tiny_backbone.encode_texts(TEXTS))):
        assert not torch.equal(ours, exact)
        assert F.cosine_similarity(ours, exact).min() > 0.999
    with pytest.raises(BackboneError, match="precision 'fp8' is unknown"):
        Backbone.load(tiny_folder, precision="fp8")  # type: ignore[arg-type]


# --- images and texts ----------------------------------------------------------------------------------------------


def test_preprocessing_is_the_checkpoints_own(tiny_backbone: Backbone) -> None:
    assert tiny_backbone.preprocessing == {
        "mean": [0.6, 0.5, 0.4],
        "std": [0.25, 0.3, 0.2],
        "size": 32,
        "resize": {"to": [32], "mode": "shortest_edge"},
        "crop": [32, 32],
        "resample": "bilinear",
        "orientation": "exif",
    }
    grey = torch.full((1, 3, 32, 32), 0.5)
    close(tiny_backbone.normalize(grey)[0, :, 0, 0], torch.tensor([-0.4, 0.0, 0.5]))
    close(tiny_backbone.normalize(grey, "imagenet")[0, :, 0, 0], torch.tensor([0.06550218, 0.19642857, 0.41777778]))
    assert torch.equal(tiny_backbone.normalize(grey, "none"), grey)
    with pytest.raises(BackboneError, match="statistics 'own' are unknown"):
        tiny_backbone.normalize(grey, "own")  # type: ignore[arg-type]


def test_without_an_image_processor_clips_statistics_are_used(tmp_path: Path) -> None:
    folder = tiny_clip_folder(tmp_path / "clip")
    (folder / "preprocessor_config.json").unlink()
    backbone = Backbone.load(folder)
    assert backbone.preprocessing["mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert backbone.preprocessing["resample"] == "bicubic"


def test_tokenize_is_the_tokenizers_encoding_padded_with_zeros(tiny_backbone: Backbone) -> None:
    ids = tiny_backbone.tokenize(TEXTS)
    assert ids.shape == (3, 64)
    for row, text in zip(ids, TEXTS, strict=True):
        expected = tiny_backbone.tokenizer(text)["input_ids"]
        assert row[: len(expected)].tolist() == expected
        assert not row[len(expected) :].any()
    assert tiny_backbone.eot_positions(ids).tolist() == [
        len(tiny_backbone.tokenizer(text)["input_ids"]) - 1 for text in TEXTS
    ]


def test_unusable_texts_and_images_are_named(tiny_backbone: Backbone) -> None:
    with pytest.raises(BackboneError, match=r"has \d+ tokens, backbone models\S*/tiny-clip reads 64: shorten it"):
        tiny_backbone.tokenize(["z " * 70])
    with pytest.raises(BackboneError, match="end-of-text token"):
        tiny_backbone.tokenize(["a <|endoftext|> b"])
    with pytest.raises(BackboneError, match=r"\(2, 3, 24, 24\), this backbone takes \[B, 3, 32, 32\]"):
        tiny_backbone.encode_images(torch.zeros(2, 3, 24, 24))
    with pytest.raises(BackboneError, match="no tokenizer"):
        Backbone.from_config(tiny_config(), seed=0).encode_texts(["cat"])
    assert tiny_backbone.encode_texts([]).shape == (0, 24)


# --- loading ---------------------------------------------------------------------------------------------------------


def test_load_names_what_is_missing_and_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackboneError, match=r"folder .*nowhere does not exist"):
        Backbone.load(tmp_path / "nowhere")
    with pytest.raises(BackboneError, match=r"folder ./nowhere does not exist"):
        Backbone.load("./nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackboneError, match=r"has no config.json"):
        Backbone.load(tmp_path / "empty")
    folder = tiny_clip_folder(tmp_path / "clip")
    (folder / "model.safetensors").rename(tmp_path / "weights")
    with pytest.raises(BackboneError, match=r"no weights: convert them to model.safetensors"):
        Backbone.load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    with pytest.raises(BackboneError, match=r"only pickled weights: .*pickle is never loaded"):
        Backbone.load(folder)
    (folder / "model.safetensors").write_bytes((tmp_path / "weights").read_bytes()[:1000])
    with pytest.raises(BackboneError, match="cannot be loaded"):
        Backbone.load(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        BackboneError, match=r"cannot be loaded .*a Hub name needs the network, or HF_HUB_OFFLINE=1"
    ) as caught:
        Backbone.load("nobody/no-such-clip")
    assert "\n" not in str(caught.value)


def test_load_refuses_other_models_and_incomplete_or_foreign_parts(tmp_path: Path) -> None:
    folder = tiny_clip_folder(tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())

    (folder / "config.json").write_text(json.dumps({**config, "model_type": "siglip"}))
    with pytest.raises(BackboneError, match="is a 'siglip' checkpoint"):
        Backbone.load(folder)

    more_layers = {**config["vision_config"], "num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps({**config, "vision_config": more_layers}))
    with pytest.raises(BackboneError, match=r"\d+ weights are missing, such as vision_model.encoder.layers.2"):
        Backbone.load(folder)

    other_end = {**config["text_config"], "eos_token_id": 7}
    (folder / "config.json").write_text(json.dumps({**config, "text_config": other_end}))
    with pytest.raises(BackboneError, match="make them agree"):
        Backbone.load(folder)

    small = tiny_model(config=tiny_config(text={"vocab_size": 100}))
    with pytest.raises(BackboneError, match="do not belong together"):
        ClipBackbone(small, tokenizer=tiny_tokenizer())


def test_half_precision_files_load_as_float32(tmp_path: Path) -> None:
    folder = tiny_clip_folder(tmp_path / "clip")
    tiny_model().half().save_pretrained(folder)
    backbone = Backbone.load(folder)
    assert {tensor.dtype for tensor in backbone.model.parameters()} == {torch.float32}
    assert re.fullmatch(r"[^/]+/clip", backbone.name)


def changed_json(name: str, **changes: Any) -> Callable[[Path], None]:
    """Changes values of a folder's JSON file."""

    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        for key, value in changes.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) else value
        (folder / name).write_text(json.dumps(values))

    return change


def changed_weight(name: str, value: float) -> Callable[[Path], None]:
    """Sets one number of one weight."""

    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights[name].view(-1)[0] = value
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (changed_json("config.json", vision_config={"num_hidden_layers": 1}), r"has 16 weights too many .*layers\.1\."),
        (
            changed_json("config.json", projection_dim=768),
            r"weight text_projection.weight is \(24, 32\), .* \(768, 32\)",
        ),
        (changed_json("config.json", vision_config={"num_attention_heads": 5}), r"config.json .*heads \(5\)"),
        (
            changed_json("config.json", vision_config={"hidden_act": "swishy"}),
            "config.json has the hidden_act 'swishy' in vision_config, which transformers does not have: give",
        ),
        (changed_json("config.json", text_config={"hidden_act": "quickgelu"}), "hidden_act 'quickgelu' in text_config"),
        (changed_weight("text_projection.weight", float("nan")), "weight text_projection.weight is not finite"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer has no words: put the .* tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "put the checkpoint.s own tokenizer.json"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "other.safetensors"),
            "neither model.safetensors",
        ),
        (
            lambda folder: (folder / "preprocessor_config.json").write_text("{"),
            "preprocessor_config.json cannot be loaded",
        ),
        (
            lambda folder: (folder / "preprocessor_config.json").write_text("[]"),
            "preprocessor_config.json cannot be load",
        ),
        (changed_json("preprocessor_config.json", image_mean=[0.5]), r"has image_mean \[0.5\] and .*three numbers"),
        (changed_json("preprocessor_config.json", image_std=[0, 0, 0]), "deviations above 0"),
        (changed_json("preprocessor_config.json", resample="cubic"), "has resample 'cubic': give a number"),
        (changed_json("preprocessor_config.json", do_rescale=False), "do_rescale false"),
    ],
)
def test_a_broken_part_of_a_folder_is_named(
    tiny_folder: Path, tmp_path: Path, change: Callable[[Path], None], line: str
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "clip")
    change(folder)
    with pytest.raises(BackboneError, match=line) as caught:
        Backbone.load(folder)
    assert "\n" not in str(caught.value)


def test_an_image_processor_that_does_not_normalise(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "clip")
    changed_json("preprocessor_config.json", do_normalize=False)(folder)
    backbone = Backbone.load(folder)
    assert torch.equal(backbone.normalize(pixels()), pixels())
    changed_json("preprocessor_config.json", do_normalize=True, image_mean=0.5, image_std=0.5)(folder)
    assert torch.equal(Backbone.load(folder).normalize(pixels()), (pixels() - 0.5) / 0.5)


def test_an_old_config_needs_the_end_of_text_to_be_the_largest_id(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "clip")
    changed_json("config.json", text_config={"eos_token_id": 2, "vocab_size": 596})(folder)
    weights = load_file(folder / "model.safetensors")
    words = weights["text_model.embeddings.token_embedding.weight"]
    weights["text_model.embeddings.token_embedding.weight"] = torch.cat([words, words[:1]])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    texts = Backbone.load(folder).encode_texts(TEXTS)
    close(texts, Backbone.load(tiny_folder).encode_texts(TEXTS))
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BackboneError, match=r"set text_config.eos_token_id in config.json to 594"):
        Backbone.load(folder)


def test_the_hub_is_asked_once_and_the_local_cache_serves_without_it(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, float]] = []

    def silent(self: Any, name: str, timeout: float) -> None:
        asked.append((name, timeout))
        raise ConnectionError("[Errno -2] Name or service not known\nand more")

    with pytest.raises(BackboneError, match=r"the Hub has no such checkpoint.*check the name"):
        Backbone.load("no body")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", silent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        BackboneError, match=r"not in the local Hub cache, and the Hub: \[Errno -2\] Name .*network"
    ) as no:
        Backbone.load("nobody/tiny")
    assert "\n" not in str(no.value)
    there = tmp_path / "models--nobody--tiny"
    shutil.copytree(tiny_folder, there / "snapshots" / ("a" * 40))
    (there / "refs").mkdir()
    (there / "refs" / "main").write_text("a" * 40)
    found = Backbone.load("nobody/tiny")
    assert (found.name, found.weights_hash) == ("nobody/tiny", Backbone.load(tiny_folder).weights_hash)
    assert [name for name, _ in asked] == ["nobody/tiny"] * 2
    assert all(timeout <= 5 for _, timeout in asked)


def test_a_tokenizer_whose_merges_are_missing_is_refused(tmp_path: Path) -> None:
    folder = tiny_clip_folder(tmp_path / "clip")
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text())
    merges = whole["model"]["merges"]
    for left in ([], merges[:-1], merges[:20]):
        whole["model"]["merges"] = left
        file.write_text(json.dumps(whole))
        with pytest.raises(BackboneError, match=f"makes {len(merges) - len(left)} of its tokens") as caught:
            Backbone.load(folder)
        assert "\n" not in str(caught.value)
    file.unlink()
    (folder / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(BackboneError, match=r"merges\.txt by vocab.json"):
        Backbone.load(folder)
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
    Backbone.load(folder)


def test_a_tokenizer_that_drops_merges_at_random_is_refused(tmp_path: Path) -> None:
    folder = tiny_clip_folder(tmp_path / "clip")
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text())
    whole["model"]["dropout"] = 0.5
    file.write_text(json.dumps(whole))
    assert json.loads(Backbone.load(folder).tokenizer.backend_tokenizer.to_str())["model"]["dropout"] is None
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # which takes the file as it is
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(BackboneError, match=r"drops merges at random \(dropout 0.5\).* set model.dropout to null"):
        Backbone.load(folder)


def test_code_beside_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    folder = tiny_clip_folder(tmp_path / "clip")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nclass Own: pass\n")
    map_ = {"AutoTokenizer": ["own.Own", "own.Own"], "AutoModel": "own.Own", "AutoConfig": "own.Own"}
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, "auto_map": map_}))
    with contextlib.suppress(BackboneError):
        Backbone.load(folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("statistics", ["clip", "imagenet", "none"])
def test_8_bit_images_are_refused_and_not_read_as_values_in_the_unit_range(
    tiny_backbone: Backbone, statistics: Any
) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with pytest.raises(BackboneError, match=r"floats in \[0, 1\], not torch.uint8; pass pixels.float\(\) / 255"):
        tiny_backbone.normalize(images, statistics)
    assert tiny_backbone.normalize(images.float() / 255, statistics).is_floating_point()
