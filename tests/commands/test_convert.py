"""OpenAI's CLIP files become checkpoint folders with the same features, and nothing in a file is ever executed."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.backbones import sources
from benchmarks.backbones.openai_checkpoint import CheckpointError, clip_weights, convert, load_tokenizer, read_weights
from benchmarks.convert import main
from methods.parts.backbone import Backbone, BackboneError


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary file in OpenAI's format with a few merges."""
    file = tmp_path_factory.mktemp("bpe") / "bpe_simple_vocab_16e6.txt.gz"
    pairs = ["t o</w>", "p h", "ph o", "c a", "ca t</w>", "o f</w>"]
    file.write_bytes(gzip.compress(("#version: 0.2\n" + "\n".join(pairs) + "\n").encode()))
    return file


# --- a CLIP in OpenAI's layout, with a forward pass of its own --------------------------------------------------------


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, mask: Tensor | None) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        hidden = OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=QuickGelu(), c_proj=nn.Linear(4 * width, width))
        self.mlp = nn.Sequential(hidden)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=self.mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, mask: Tensor | None = None) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, mask) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x.permute(1, 0, 2)).permute(1, 0, 2)


class Visual(nn.Module):
    def __init__(self, width: int, layers: int, patch: int, size: int, embedding: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((size // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, layers)
        self.proj = nn.Parameter(torch.empty(width, embedding))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).permute(0, 2, 1)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenAIClip(nn.Module):
    def __init__(self, words: int, *, context: int = 16, width: int = 64, embedding: int = 24) -> None:
        super().__init__()
        mask = torch.full((context, context), float("-inf")).triu(1)
        self.visual = Visual(128, 3, 8, 32, embedding)
        self.transformer = Transformer(width, 2, mask)
        self.token_embedding = nn.Embedding(words, width)
        self.positional_embedding = nn.Parameter(torch.empty(context, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embedding))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        self.input_resolution, self.context_length, self.vocab_size = 32, context, words
        for name, value in self.named_parameters():
            if name != "logit_scale":
                scale = 0.3 if value.ndim < 2 or "embedding" in name else value.shape[-1] ** -0.5
                nn.init.normal_(value, 1.0 if re.search(r"ln_\w+\.weight", name) else 0.0, scale)

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.ln_final(self.transformer(self.token_embedding(ids) + self.positional_embedding))
        return self.visual(pixels), x[torch.arange(len(ids)), ids.argmax(dim=-1)] @ self.text_projection


@pytest.fixture(scope="module")
def clip(vocabulary: Path) -> OpenAIClip:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OpenAIClip(len(load_tokenizer(str(vocabulary)))).eval()


@pytest.fixture(scope="module")
def archive(clip: OpenAIClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CLIP as a TorchScript archive, as OpenAI publishes its own."""
    file = tmp_path_factory.mktemp("archives") / "ViT-S-8.pt"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the sizes of a batch are fixed
        traced = torch.jit.trace(clip, (torch.zeros(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.long)))
    torch.jit.save(traced, file)
    return file


def state_dict_file(clip: OpenAIClip, path: Path, **changes: Any) -> Path:
    torch.save({**clip.state_dict(), **changes}, path)
    return path


def assert_same_features(folder: Path, clip: OpenAIClip, mean: float | None = None) -> None:
    backbone = Backbone.load(folder)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 32, 32, generator=generator)
    ids = backbone.tokenize(["a photo of a cat", "a cat", "to"])
    with torch.no_grad():
        images, texts = clip(pixels, ids)
        torch.testing.assert_close(backbone.encode_images(pixels), images, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(backbone.encode_ids(ids), texts, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(backbone.encode_ids(ids, cut=False), texts, rtol=1e-4, atol=1e-4)
    assert images.std(dim=0).mean() > 0.05, "the features of different images differ, so equality means something"
    assert texts.std(dim=0).mean() > 0.05
    assert backbone.logit_scale == pytest.approx(99.484, rel=1e-3)
    assert backbone.preprocessing["mean"] == pytest.approx([mean] * 3 if mean else [0.48145466, 0.4578275, 0.40821073])


# --- conversion -------------------------------------------------------------------------------------------------------


def test_a_torchscript_archive_keeps_its_features(
    clip: OpenAIClip, archive: Path, vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "converted"
    assert main([str(archive), str(out), "--tokenizer", str(vocabulary)]) == 0
    assert f"use it with --backbone {out}" in capsys.readouterr().out
    assert_same_features(out, clip)
    assert not list(out.glob("*.bin")) and (out / "model.safetensors").is_file()
    assert len({file.stat().st_mode for file in out.iterdir()}) == 1, "whoever may read the config may read the weights"
    assert sources.load(str(out), device="cpu", precision="float32").name == "deep/converted"


def test_a_state_dict_keeps_its_features(clip: OpenAIClip, vocabulary: Path, tmp_path: Path) -> None:
    extra = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16), "vocab_size": torch.tensor(520)}
    file = state_dict_file(clip, tmp_path / "state.pt", **extra)
    assert_same_features(convert(file, tmp_path / "out", tokenizer=str(vocabulary)), clip)


def test_half_precision_archives_become_float32(clip: OpenAIClip, archive: Path, tmp_path: Path) -> None:
    file = tmp_path / "half.pt"
    torch.jit.save(torch.jit.load(archive).half(), file)
    weights = read_weights(file)
    assert {value.dtype for value in weights.values()} == {torch.float16}
    expected = clip.visual.conv1.weight.half().float()
    converted = clip_weights(weights)["vision_model.embeddings.patch_embedding.weight"]
    assert converted.dtype == torch.float32
    assert torch.equal(converted, expected.detach())


def test_an_archive_holds_what_the_module_holds(clip: OpenAIClip, archive: Path) -> None:
    read, own = read_weights(archive), clip.state_dict()
    assert set(own) <= set(read)
    assert all(torch.equal(read[name], own[name]) for name in own)


def test_the_vocabulary_file_gives_openais_numbers(vocabulary: Path) -> None:
    tokenizer = load_tokenizer(str(vocabulary))
    assert len(tokenizer) == 512 + 6 + 2
    assert tokenizer.get_vocab()["!"] == 0, "printable bytes come first"
    assert tokenizer.get_vocab()["!</w>"] == 256
    assert tokenizer.get_vocab()["to</w>"] == 512
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (518, 519)
    assert tokenizer("cat", add_special_tokens=False)["input_ids"] == [516]


def test_a_hugging_face_folder_with_pickled_weights(tiny_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    source = tmp_path / "pickled"
    source.mkdir()
    for file in tiny_folder.iterdir():
        if file.suffix != ".safetensors":
            (source / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(tiny_folder / "model.safetensors"), source / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"only pickled weights.*`python -m benchmarks\.convert FOLDER OUT`"):
        sources.load(str(source), device="cpu", precision="float32")
    converted = Backbone.load(convert(source, tmp_path / "out"))
    original = Backbone.load(tiny_folder)
    assert converted.weights_hash == original.weights_hash
    assert converted.preprocessing == original.preprocessing
    texts = ["a photo of a cat"]
    assert torch.equal(converted.encode_texts(texts), original.encode_texts(texts))


def open_clip_config(tmp_path: Path, **changes: Any) -> Path:
    import json

    model = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 128, "patch_size": 8, "head_width": 64},
        "text_cfg": {"context_length": 16, "width": 64, "heads": 1, "layers": 2},
        **changes,
    }
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": 0.5, "resize_mode": "squash"}
    preprocess = model.pop("preprocess_cfg", preprocess)
    file = tmp_path / "open_clip_config.json"
    file.write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    return file


def test_weights_that_do_not_show_how_they_compute_are_refused(
    clip: OpenAIClip, vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, state = ["--tokenizer", str(vocabulary)], clip.state_dict()
    wrapped = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
    for number, kept in enumerate((state, wrapped, {"model": state})):
        file = tmp_path / f"{number}.pt"
        torch.save(kept, file)
        assert main([str(file), str(tmp_path / "out"), *words]) == 2
        error = capsys.readouterr().err
        assert "open_clip_config.json beside it, or give --config FILE" in error
        stated = ["--activation", "quick_gelu", "--head-width", "64"]
        assert main([str(file), str(tmp_path / f"out{number}"), *words, *stated]) == 0
    assert main([str(file), str(tmp_path / "out"), *words, "--activation", "gelu"]) == 2
    assert "--head-width (64; 80 for ViT-H" in capsys.readouterr().err


def test_open_clips_config_is_followed(clip: OpenAIClip, vocabulary: Path, tmp_path: Path) -> None:
    file = state_dict_file(clip, tmp_path / "open_clip_pytorch_model.bin")
    open_clip_config(tmp_path, vision_cfg={"head_width": 32, "width": 128})
    config = Backbone.load(convert(file, tmp_path / "beside", tokenizer=str(vocabulary))).model.config
    assert (config.vision_config.hidden_act, config.vision_config.num_attention_heads) == ("gelu", 4)
    given = open_clip_config(tmp_path, quick_gelu=True)
    out = convert(tmp_path, tmp_path / "folder", tokenizer=str(vocabulary), config=given)
    backbone = Backbone.load(out)
    assert backbone.model.config.text_config.hidden_act == "quick_gelu"
    assert backbone.preprocessing["resize"] == {"to": [32, 32], "mode": "height_width"}
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = clip.visual(pixels)
    torch.testing.assert_close(backbone.encode_images(pixels), expected, rtol=1e-4, atol=1e-4)
    for changes, reason in (
        ({"vision_cfg": {"width": 256}}, "has vision_cfg.width 128, but its config has 256"),
        ({"vision_cfg": {"timm_model_name": "vit"}}, "timm_model_name 'vit' is not supported"),
        ({"custom_text": True}, "custom_text True is not supported"),
        ({"vision_cfg": {"head_width": 48}}, "do not divide into heads of 48"),
        ({"vision_cfg": {"image_size": [224, 224]}}, "has vision_cfg.image_size 32, but its config has 224"),
        ({"preprocess_cfg": ["squash"]}, "preprocess_cfg .* must be a dictionary"),
        ({"preprocess_cfg": {"mean": [0.5]}}, r"preprocess_cfg.mean \[0.5\] must be three numbers"),
    ):
        open_clip_config(tmp_path, **changes)
        with pytest.raises(CheckpointError, match=reason) as caught:
            convert(file, tmp_path / "refused", tokenizer=str(vocabulary))
        assert "\n" not in str(caught.value)


def test_names_and_wrappers_of_training_code_are_seen_through(
    clip: OpenAIClip, vocabulary: Path, tmp_path: Path
) -> None:
    open_clip_config(tmp_path, quick_gelu=True)
    state = clip.state_dict()
    for number, kept in enumerate(
        (
            {"state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}},
            {"model": {"state_dict": {f"_orig_mod.module.{name}": value for name, value in state.items()}}},
            {"state_dict": {"model": state}},
        )
    ):
        file = tmp_path / f"{number}.pt"
        torch.save(kept, file)
        assert_same_features(convert(file, tmp_path / f"out{number}", tokenizer=str(vocabulary)), clip, mean=0.5)


def test_a_conversion_that_cannot_be_used_leaves_nothing(
    clip: OpenAIClip, vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_clip_config(tmp_path)
    broken = state_dict_file(clip, tmp_path / "w.pt", logit_scale=torch.tensor(float("nan")))
    assert main([str(broken), str(tmp_path / "out"), "--tokenizer", str(vocabulary)]) == 2
    assert "weight logit_scale is not finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- nothing is executed ----------------------------------------------------------------------------------------------


class Payload:
    """Unpickling it runs a command that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.mark}'",)


def with_modules(archive: Path, out: Path, data: bytes) -> Path:
    """The archive with another ``data.pkl``."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, data if name.endswith("/data.pkl") else old.read(name))
    return out


@pytest.mark.parametrize("kind", ["saved", "saved, old format", "bare pickle", "in a state dict"])
def test_a_malicious_file_is_refused(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    mark, file = tmp_path / "mark", tmp_path / "evil.pt"
    payload = Payload(mark)
    if kind == "bare pickle":
        file.write_bytes(pickle.dumps(payload))
    elif kind == "in a state dict":
        torch.save({"visual.conv1.weight": torch.zeros(2), "visual.proj": payload}, file)
    else:
        torch.save(payload, file, _use_new_zipfile_serialization=kind == "saved")
    assert main([str(file), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "refused, nothing of it was run" in error
    assert str(file) in error
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_archive_is_refused(
    archive: Path, tmp_path: Path, protocol: int, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "mark"
    data = pickle.dumps({"visual": Payload(mark)}, protocol=protocol)
    pickle.loads(data)
    assert mark.exists(), "the payload works where it is unpickled"
    mark.unlink()
    file = with_modules(archive, tmp_path / "evil.pt", data)
    assert main([str(file), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(r"(calls \w+\.system|pickle instruction \w+): refused, nothing of it was run", error), error
    assert not mark.exists()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x02cposix\nsystem\n)\x81.", "makes a posix.system: refused"),
        (b"\x80\x02c__torch__\nM\n)\x81}b", "no end|broken"),
        (
            b"\x80\x02(X\x07\x00\x00\x00storagectorch\nObjectStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ.",
            "type",
        ),
        (b"\x80\x02X\x01\x00\x00\x00aK\x01b.", "is invalid"),
        (b"", "broken"),
        (b"\xff\xfe", "broken"),
    ],
)
def test_a_crooked_list_of_modules_is_refused_in_one_line(
    archive: Path, tmp_path: Path, data: bytes, reason: str
) -> None:
    file = with_modules(archive, tmp_path / "crooked.pt", data)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def tensor_of(count: int, size: tuple[int, ...], stride: tuple[int, ...], key: str = "0") -> bytes:
    """A list of modules with one tensor of ``count`` float32 numbers."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + value.to_bytes(4, "little", signed=True) for value in values) + b"t"

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    storage += b"J" + count.to_bytes(4, "little") + b"tQ"
    view = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + numbers(size) + numbers(stride) + b"tR"
    return b"\x80\x02c__torch__\nM\n)\x81}" + text("a") + view + b"sb."


@pytest.mark.parametrize(
    ("count", "size", "stride", "key", "ok"),
    [
        (6, (2, 3), (3, 1), "0", True),
        (6, (3, 2), (1, 3), "0", True),
        (6, (2, 4), (4, 1), "0", False),
        (6, (9, 9), (0, 0), "0", False),
        (6, (2, -3), (3, 1), "0", False),
        (5, (5,), (1,), "0", False),
        (6, (6,), (1,), "../../secret", False),
        (6, (6,), (1,), "7", False),
    ],
)
def test_tensors_stay_inside_their_data(
    tmp_path: Path, count: int, size: tuple[int, ...], stride: tuple[int, ...], key: str, ok: bool
) -> None:
    file = tmp_path / "a.pt"
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("a/data.pkl", tensor_of(count, size, stride, key))
        made.writestr("a/constants.pkl", b"")
        made.writestr("a/data/0", torch.arange(6.0).numpy().tobytes())
    if ok:
        assert torch.equal(read_weights(file)["a"], torch.arange(6.0).as_strided(size, stride))
    else:
        with pytest.raises(CheckpointError, match=r"broken|storage"):
            read_weights(file)


def test_shared_modules_do_not_multiply(tmp_path: Path) -> None:
    """Eight levels of thirty references each: 30^8 names, were each of them followed."""

    def module(children: bytes) -> bytes:
        named = b"".join(b"X\x01\x00\x00\x00" + bytes([97 + number]) + children for number in range(26))
        return b"c__torch__\nM\n)\x81}(" + named + b"ub"

    data = b"\x80\x02" + tensor_of(6, (6,), (1,)).split(b"a", 1)[1].removesuffix(b"sb.") + b"q\x00"
    for level in range(8):
        data += module(b"h" + bytes([level])) + b"q" + bytes([level + 1])
    file = tmp_path / "a.pt"
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("a/data.pkl", data + b".")
        made.writestr("a/constants.pkl", b"")
        made.writestr("a/data/0", torch.arange(6.0).numpy().tobytes())
    assert len(read_weights(file)) == 26


def test_what_swells_is_refused(clip: OpenAIClip, tmp_path: Path) -> None:
    plain, packed = state_dict_file(clip, tmp_path / "plain.pt"), tmp_path / "packed.pt"
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="is compressed"):
        read_weights(packed)
    for value, reason in (
        (torch.zeros(1).expand(1 << 40), "reaches beyond its data"),
        (torch.zeros(2, device="meta"), "not a plain tensor"),
        (torch.zeros(2, 2).to_sparse(), "not a plain tensor"),
    ):
        with pytest.raises(CheckpointError, match=f"visual.proj.*{reason}|{reason}") as caught:
            read_weights(state_dict_file(clip, tmp_path / "odd.pt", **{"visual.proj": value}))
        assert "\n" not in str(caught.value)


# --- errors that name the fix -----------------------------------------------------------------------------------------


def other_names(file: Path) -> Path:
    """A state dict that is no CLIP's."""
    torch.save({"weight": torch.zeros(2)}, file)
    return file


def test_files_that_are_no_clip(clip: OpenAIClip, vocabulary: Path, archive: Path, tmp_path: Path) -> None:
    words = str(vocabulary)

    def error(file: Path, tokenizer: str = words) -> str:
        with pytest.raises(CheckpointError) as caught:
            convert(file, tmp_path / "out", tokenizer=tokenizer)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*")), "nothing half-made stays"
        return str(caught.value)

    assert "hf download openai/clip-vit-base-patch32" in error(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    assert "broken" in error(tmp_path / "text.pt")
    (tmp_path / "cut.pt").write_bytes(archive.read_bytes()[:5000])
    assert "broken" in error(tmp_path / "cut.pt")
    other = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(2)}, other)
    assert "has no visual.conv1.weight: it is not a CLIP in OpenAI's naming" in error(other)
    torch.save({"visual.layer1.0.conv1.weight": torch.zeros(2)}, other)
    assert "does not show how its text tower computes" in error(other)
    numbers = dict.fromkeys(("input_resolution", "context_length", "vocab_size"), torch.tensor(1))
    torch.save({"visual.layer1.0.conv1.weight": torch.zeros(2), **numbers}, other)
    assert "has no visual.attnpool.positional_embedding: it is not a CLIP in OpenAI's naming" in error(other)
    torch.save([1, 2], other)
    assert "no state dict" in error(other)
    more = state_dict_file(clip, other, **{"visual.more": torch.zeros(2)})
    assert "has the weight visual.more, which no CLIP" in error(more)
    lacking = clip.state_dict()
    del lacking["ln_final.bias"]
    torch.save(lacking, other)
    assert "text_model.final_layer_norm.bias is missing" in error(other)
    assert "has 300 tokens, tokenizer" in error(
        state_dict_file(clip, other, **{"token_embedding.weight": torch.zeros(300, 64)})
    )
    assert "weights of shapes that no CLIP has" in error(
        state_dict_file(clip, other, **{"visual.conv1.weight": torch.zeros(3)})
    )
    far = state_dict_file(clip, other, **{"transformer.resblocks.999999999.ln_1.bias": torch.zeros(64)})
    assert "is missing some of transformer.resblocks" in error(far)
    assert "expected (" in error(state_dict_file(clip, other, text_projection=torch.zeros(0, 1 << 40)))
    assert "it is not a CLIP" in error(other_names(other), tokenizer="no/tokenizer"), "the file comes first"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "nothing to convert" in error(empty)


def test_a_missing_tokenizer_says_how_to_get_one(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"fetch it with `hf download .*bpe_simple_vocab") as caught:
        convert(archive, tmp_path / "out", tokenizer=str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)


def test_an_occupied_place_is_left_alone(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists already"):
        convert(archive, tmp_path)
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_a_checkpoint_file_is_no_backbone(archive: Path) -> None:
    with pytest.raises(
        ValueError, match=r"convert it first, with `python -m benchmarks\.convert .*ViT-S-8\.pt ViT-S-8`"
    ):
        sources.load(str(archive), device="cpu", precision="float32")


def test_openais_names_are_translated() -> None:
    with pytest.raises(ValueError, match="use its Hub name openai/clip-vit-large-patch14"):
        sources.resolve("ViT-L/14")


def test_a_missing_checkpoint_says_which_command_fetches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match=r"`hf download nobody/no-clip` fetches it") as caught:
        sources.load("nobody/no-clip", device="cpu", precision="float32")
    assert "\n" not in str(caught.value)


def test_help_loads_no_torch() -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "benchmarks.convert", "--help"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert not re.search(r"\|\s+(torch|transformers)\s*$", done.stderr, flags=re.MULTILINE)
    assert "OUT" in done.stdout


def test_pickles_written_here_are_ordinary(tmp_path: Path) -> None:
    """The refusals above are not those of a broken writer: harmless state dicts of every format are read."""
    weights = {"a": torch.arange(3.0), "b": torch.ones(2, 2).half()}
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save({"state_dict": weights}, buffer, _use_new_zipfile_serialization=new)
        (tmp_path / "weights.pt").write_bytes(buffer.getvalue())
        read = read_weights(tmp_path / "weights.pt")
        assert all(torch.equal(read[name], weights[name]) for name in weights)


# --- ResNets ----------------------------------------------------------------------------------------------------------


def resnet_weights(vocabulary: int) -> dict[str, Tensor]:
    """Weights under the names of OpenAI's RN50, small: those that its config follows from, and the text tower's."""
    names = {
        "visual.conv1.weight": (8, 3, 3, 3),
        "visual.attnpool.positional_embedding": (5, 512),
        "token_embedding.weight": (vocabulary, 64),
        "positional_embedding": (16, 64),
        "text_projection": (64, 24),
        "transformer.resblocks.0.mlp.c_fc.weight": (256, 64),
    }
    for stage, blocks in enumerate((2, 1, 3, 1), 1):
        names |= {f"visual.layer{stage}.{block}.conv1.weight": (16, 16, 1, 1) for block in range(blocks)}
    return {name: torch.zeros(shape) for name, shape in names.items()}


def test_a_resnets_config_follows_from_its_weights(vocabulary: Path, tmp_path: Path) -> None:
    weights = resnet_weights(len(load_tokenizer(str(vocabulary))))
    file = tmp_path / "RN50.pt"
    torch.save(weights, file)
    with pytest.raises(CheckpointError, match=r"RN50\.pt does not show how its text tower computes: .*--activation"):
        convert(file, tmp_path / "out", tokenizer=str(vocabulary))
    out = convert(file, tmp_path / "out", tokenizer=str(vocabulary), activation="quick_gelu")
    config = json.loads((out / "open_clip_config.json").read_text())["model_cfg"]
    assert (config["embed_dim"], config["quick_gelu"]) == (24, True)
    assert config["vision_cfg"] == {"image_size": 64, "layers": [2, 1, 3, 1], "width": 16}
    assert (config["text_cfg"]["heads"], config["text_cfg"]["layers"]) == (1, 1)
    del weights["visual.layer3.1.conv1.weight"]
    torch.save(weights, file)
    with pytest.raises(CheckpointError, match=r"RN50\.pt is missing some of visual\.layer3"):
        convert(file, tmp_path / "other", tokenizer=str(vocabulary), activation="quick_gelu")
    assert not (tmp_path / "other").exists()
