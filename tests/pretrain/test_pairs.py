"""The recipe ``clip``: towers, captions, crops, sampling, loss, resume, parts and headroom."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F

from benchmarks.datasets.picto_domains import PictoDomains
from benchmarks.evaluation.ranking import rank
from benchmarks.pretrain import compact, headroom, parts
from benchmarks.pretrain import train as train_module
from benchmarks.pretrain.data import Corpus, names_test_class
from benchmarks.pretrain.model import PIXEL_STD, ModelConfig, build_model, train_tokenizer
from benchmarks.pretrain.pairs import CLAUSES, TEMPLATES, CaptionTable, CropTable, PairBatches, balanced_weights
from benchmarks.pretrain.towers import image_features, text_features
from benchmarks.pretrain.train import RECIPES, TrainConfig, Trainer, pair_loss, process_device

SIZES = ModelConfig(
    image_size=32,
    patch_size=16,
    vision_width=32,
    vision_layers=2,
    text_width=32,
    text_layers=2,
    embed_dim=16,
    vocabulary=700,
)
NAMES = ("car", "arrow left", "zebra crossing", "cup", "dog")
SMALL = {"batch": 6, "warmup_steps": 2, "save_every": 3, "long_every": 3, "precision": "float32", "text_chunks": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A corpus of random single-colour and colour drawings; one row of ``mono.npy`` is not in the index."""
    random = np.random.default_rng(0)
    out = tmp_path / "corpus"
    out.mkdir()
    np.save(out / "mono.npy", random.integers(0, 256, (21, 32, 32), dtype=np.uint8))
    np.save(out / "colour.npy", random.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    rows = [
        {
            "key": f"a:{n}",
            "collection": "free-set" if n % 5 else "openclipart",
            "phrase": NAMES[n % len(NAMES)] if n > 2 else "car",
            "style": "outline" if n % 2 else "",
            "category": "travel" if n % 3 else "",
            "kind": "mono" if n < 20 else "colour",
            "row": n + 1 if n < 20 else n - 20,
        }
        for n in range(24)
    ]
    pd.DataFrame(rows).to_parquet(out / "index.parquet")
    summary = {"iconify_version": "x", "size": 32, "pictures": 24, "mono": 20, "colour": 4, "phrases": 5}
    (out / "corpus.json").write_text(json.dumps(summary))
    return out


@pytest.fixture
def tokenizer(tmp_path: Path) -> object:
    texts = [text.replace("{", "").replace("}", "") for _, group in TEMPLATES.values() for text in group]
    return train_tokenizer([*texts, *CLAUSES, *NAMES] * 3, SIZES, tmp_path / "tokenizer")


def _read(tokenizer: object, tokens: list[int]) -> str:
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)  # type: ignore[attr-defined]
    return text.replace("</w>", " ").strip()


# --- towers ---


def test_towers_are_the_function_of_clip_model() -> None:
    torch.manual_seed(0)
    model = build_model(SIZES)
    colour, ink = torch.randn(3, 3, 32, 32), torch.randn(2, 1, 32, 32)
    tokens = torch.randint(0, 600, (4, 9))
    end = torch.tensor([3, 8, 5, 1])
    for row, at in enumerate(end):
        tokens[row, at:] = SIZES.vocabulary - 1
    with torch.no_grad():
        images = torch.cat([ink.expand(-1, 3, -1, -1), colour])
        expected = model.get_image_features(pixel_values=images).pooler_output
        assert torch.allclose(image_features(model, (ink, colour), torch.float32), expected, atol=1e-5)
        assert torch.allclose(image_features(model, (ink[:0], colour), torch.float32), expected[2:], atol=1e-5)
        texts = model.get_text_features(input_ids=tokens).pooler_output
        assert torch.allclose(text_features(model, tokens, end, torch.float32), texts, atol=1e-5)


def test_towers_have_the_gradients_of_clip_model() -> None:
    torch.manual_seed(0)
    model = build_model(SIZES)
    pixels = torch.randn(3, 3, 32, 32)
    weight = torch.randn(16)
    (model.get_image_features(pixel_values=pixels).pooler_output @ weight).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    (image_features(model, (pixels,), torch.float32) @ weight).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-4, rtol=1e-3), name


# --- captions ---


@pytest.mark.parametrize("long", [False, True])
def test_captions_are_what_the_tokenizer_makes_of_their_text(folder: Path, tokenizer: object, long: bool) -> None:
    index = Corpus(folder).index
    table = CaptionTable(index, tokenizer, SIZES.context_length)
    rows = np.tile(np.arange(len(index)), 40)
    tokens, end = table.write(rows, np.random.default_rng(0), long=long)
    texts = set()
    for n, (line, at) in enumerate(zip(tokens, end, strict=True)):
        text = _read(tokenizer, line[1:at].tolist())
        again = tokenizer(text)["input_ids"]  # type: ignore[operator]
        assert line[0] == again[0]
        assert set(line[at:].tolist()) == {SIZES.vocabulary - 1}
        if at < SIZES.context_length - 1:
            assert again == line[: at + 1].tolist(), text
            assert index["phrase"].iloc[rows[n]] in text
        texts.add(text)
    assert tokens.shape[1] <= SIZES.context_length
    assert len(texts) > 60


def test_a_caption_says_only_what_is_known_of_the_drawing(folder: Path, tokenizer: object) -> None:
    index = Corpus(folder).index
    table = CaptionTable(index, tokenizer, SIZES.context_length)
    rows = np.tile(np.flatnonzero((index["style"] == "") & (index["category"] == "")), 200)
    tokens, end = table.write(rows, np.random.default_rng(0), long=False)
    for line, at in zip(tokens, end, strict=True):
        text = _read(tokenizer, line[1:at].tolist())
        assert "outline" not in text
        assert "travel" not in text
        assert "( )" not in text
        assert not text.strip().startswith((",", ":"))


# --- sampling and crops ---


def test_a_name_counts_up_to_the_cap() -> None:
    weights = balanced_weights(["a"] * 8 + ["b"] * 2 + ["c"], 4)
    assert weights.tolist() == [0.5] * 8 + [1.0] * 3
    assert balanced_weights(["a", "a"], 0).tolist() == [1.0, 1.0]


def test_drawn_rows_follow_the_weights_and_the_colour_share(folder: Path, tokenizer: object) -> None:
    corpus = Corpus(folder)
    config = TrainConfig.of("clip", **SMALL | {"batch": 4000, "cap": 2.0, "colour_share": 0.25})
    pairs = PairBatches(corpus, tokenizer, config, SIZES.context_length, torch.device("cpu"))
    mono, colour = pairs.draw(np.random.default_rng(0))
    assert (len(mono), len(colour)) == (3000, 1000)
    kinds = corpus.index["kind"].to_numpy()
    assert set(kinds[mono]) == {"mono"}
    assert set(kinds[colour]) == {"colour"}
    weights = balanced_weights(corpus.index["phrase"].tolist(), 2.0)[:20]
    shares = np.bincount(mono, minlength=20) / len(mono)
    assert np.abs(shares - weights / weights.sum()).max() < 0.02


def test_the_whole_area_unmirrored_is_the_drawing_itself() -> None:
    table = CropTable(16, 8, torch.device("cpu"), torch.float32)
    images = torch.rand(5, 3, 16, 16)
    random = np.random.default_rng(0)
    still = table.apply(images, random, area=1.0, aspect=1.0, turns=np.zeros(5, dtype=bool))
    assert torch.allclose(still, images, atol=1e-6)
    mirrored = table.apply(images.expand(5, 3, 16, 16), random, area=1.0, aspect=1.0)
    as_it_is = [bool(torch.allclose(a, b, atol=1e-6)) for a, b in zip(mirrored, images, strict=True)]
    turned = [bool(torch.allclose(a, b.flip(-1), atol=1e-6)) for a, b in zip(mirrored, images, strict=True)]
    assert all(a != b for a, b in zip(as_it_is, turned, strict=True))


def test_a_crop_is_bilinear_interpolation_of_its_rectangle() -> None:
    table = CropTable(16, 8, torch.device("cpu"), torch.float32)
    image = torch.rand(16, 16)
    for length, start in ((8, 0), (10, 6), (13, 2)):
        matrix = table.matrices[0][table.first[length - 8] + start]
        expected = F.interpolate(image[None, None, start : start + length], (16, 16), mode="bilinear")[0, 0]
        assert torch.allclose(matrix @ image, expected, atol=1e-5)


def test_names_with_a_side_are_not_mirrored(folder: Path, tokenizer: object) -> None:
    corpus = Corpus(folder)
    pairs = PairBatches(corpus, tokenizer, TrainConfig.of("clip", **SMALL), SIZES.context_length, torch.device("cpu"))
    assert pairs.turns.tolist() == [name != "arrow left" for name in corpus.index["phrase"]]


def test_pixels_and_captions_of_a_batch_belong_together(folder: Path, tokenizer: object) -> None:
    corpus = Corpus(folder)
    config = TrainConfig.of("clip", **SMALL | {"crop_area": 1.0, "crop_aspect": 1.0, "batch": 24, "colour_share": 0.25})
    pairs = PairBatches(corpus, tokenizer, config, SIZES.context_length, torch.device("cpu"))
    pairs.turns[:] = False
    batch = pairs.batch(0, seed=3)
    assert [tuple(part.shape) for part in batch.images] == [(18, 1, 32, 32), (6, 3, 32, 32)]
    mono, colour = pairs.draw(np.random.default_rng(3))
    ink = torch.from_numpy(corpus.mono[corpus.index["row"].to_numpy()[mono]])
    assert torch.allclose(batch.images[0][:, 0], -ink.float() / 255 / PIXEL_STD, atol=1e-5)
    rgb = torch.from_numpy(corpus.colour[corpus.index["row"].to_numpy()[colour]]).permute(0, 3, 1, 2)
    assert torch.allclose(batch.images[1], (rgb / 255 - 1) / PIXEL_STD, atol=1e-5)
    width = max(tokens.shape[1] for tokens, _ in batch.texts)
    lines = [F.pad(tokens, (0, width - tokens.shape[1]), value=699) for tokens, _ in batch.texts]
    captions = torch.cat(lines)[batch.order]
    for line, row in zip(captions, [*mono, *colour], strict=True):
        assert corpus.index["phrase"].iloc[row] in _read(tokenizer, line.tolist())
    equal = (captions[:, None] == captions[None]).all(-1)
    assert torch.equal(batch.same, equal)


# --- loss and runs ---


def test_pair_loss_is_infonce_and_repeats_of_a_caption_are_positives() -> None:
    torch.manual_seed(0)
    images, texts = F.normalize(torch.randn(5, 8), dim=1), F.normalize(torch.randn(5, 8), dim=1)
    scale, diagonal = torch.tensor(9.0), torch.arange(5)
    logits = scale * images @ texts.T
    expected = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
    assert torch.allclose(pair_loss(images, texts, torch.eye(5, dtype=torch.bool), scale), expected)
    texts[1] = texts[0]
    same = torch.eye(5, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    target = same.float() / same.sum(1, keepdim=True)
    logits = scale * images @ texts.T
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert torch.allclose(pair_loss(images, texts, same, scale), expected)


def test_recipes_are_named_and_an_unknown_one_is_refused() -> None:
    assert TrainConfig.of("clip").images == 512
    assert TrainConfig.of("invariant", concepts=3, views=2).images == 6
    with pytest.raises(ValueError, match="choose from clip, invariant"):
        TrainConfig.of("simclr")
    assert set(RECIPES) == {"clip", "invariant"}


def _run(corpus: Corpus, folder: Path, until: int, *, resume: bool) -> Trainer:
    trainer = Trainer(corpus, folder, SIZES, TrainConfig.of("clip", steps=6, **SMALL))
    assert (trainer.step > 0) == resume
    while trainer.step < until:
        trainer.take_step()
    trainer.save("checkpoint")
    return trainer


def test_a_resumed_run_of_pairs_is_the_uninterrupted_run(folder: Path, tmp_path: Path) -> None:
    corpus = Corpus(folder)
    whole = Trainer(corpus, tmp_path / "whole", SIZES, TrainConfig.of("clip", steps=6, **SMALL))
    whole.train()
    _run(corpus, tmp_path / "halves", 3, resume=False)
    half = _run(corpus, tmp_path / "halves", 6, resume=True)
    first, second = whole.model.state_dict(), half.model.state_dict()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    record = json.loads((tmp_path / "whole" / "checkpoint.json").read_text())
    assert record["training"]["recipe"] == "clip"
    assert record["history"][-1]["pictures"] == 36


def test_resumed_steps_are_where_the_parameters_are(folder: Path, tmp_path: Path) -> None:
    """A fused optimiser refuses a step on another device: here the parameters are on ``meta`` after loading."""
    trainer = _run(Corpus(folder), tmp_path / "run", 1, resume=False)
    trainer.model.to("meta")
    trainer.model.load_state_dict = lambda tensors: None  # type: ignore[method-assign]
    trainer.optimizer.state.clear()
    trainer.load(tmp_path / "run/checkpoint.safetensors", tmp_path / "run/checkpoint.json")
    states = list(trainer.optimizer.state.items())
    assert states
    for parameter, state in states:
        assert {value.device for value in state.values()} == {parameter.device}


def test_a_stopped_run_is_saved_and_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, config = Corpus(folder), TrainConfig.of("clip", steps=6, **SMALL)
    trainer = Trainer(corpus, tmp_path / "run", SIZES, config)
    step = trainer.take_step

    def interrupted() -> torch.Tensor:
        if trainer.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step()

    monkeypatch.setattr(trainer, "take_step", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    trainer.train()
    assert signal.getsignal(signal.SIGTERM) is before
    assert json.loads((tmp_path / "run/checkpoint.json").read_text())["step"] == 2
    Trainer(corpus, tmp_path / "run", SIZES, config).train()
    Trainer(corpus, tmp_path / "whole", SIZES, config).train()
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("run", "whole"))
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_every_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert [str(process_device(rank)) for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(process_device(8)) == "cuda:1"
    assert chosen == [0, 1, 0, 1]


def test_a_run_without_a_terminal_says_where_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_module, "EVERY", 0.0)
    Trainer(Corpus(folder), tmp_path / "run", SIZES, TrainConfig.of("clip", steps=2, **SMALL)).train()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("step 1 of 2, ")
    assert lines[0].endswith("min left")


# --- what is left out ---


def test_test_classes_are_left_out_by_name_and_by_synset() -> None:
    dataset = PictoDomains()
    table = dataset.table
    test = sorted(set(table.loc[table["split"] == "test", "class"]))
    assert names_test_class([name.replace("-", " ") for name in test]).all()
    plain = next(name for name in test if name.isalpha() and not name.endswith("s"))
    assert names_test_class([f"{plain}s", f"big {plain} outline", "download"]).tolist() == [True, True, False]
    from nltk.corpus import wordnet

    lemmas = [lemma for name in test for lemma in wordnet.synset(dataset.synsets[name]).lemma_names()]
    assert names_test_class([lemma.replace("_", " ").lower() for lemma in lemmas]).all()


def test_options_of_the_corpus_leave_out_drawings_and_count_again(folder: Path) -> None:
    whole, less = Corpus(folder), Corpus(folder, pack_collections=False)
    assert "openclipart" in set(whole.index["collection"])
    assert set(less.index["collection"]) == {"free-set"}
    assert less.summary["pictures"] == len(less.index) < len(whole.index)


# --- parts ---


def test_a_packed_corpus_comes_back_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    files = parts.pack(folder, tmp_path / "parts", part_bytes=30_000)
    assert len(files) > 1
    assert max(file.stat().st_size for file in files) <= 30_000 or len(files) > 2
    assert parts.unpack(tmp_path / "parts", tmp_path / "again") == 24
    before, after = Corpus(folder), Corpus(tmp_path / "again")
    assert before.index.drop(columns="row").equals(after.index.drop(columns="row"))
    for kind in ("mono", "colour"):
        rows = before.index["kind"] == kind
        one, two = (getattr(c, kind)[c.index.loc[rows, "row"].to_numpy()] for c in (before, after))
        assert np.array_equal(one, two)
    files[-1].unlink()
    with pytest.raises(ValueError, match="copy all parts again"):
        parts.unpack(tmp_path / "parts", tmp_path / "less")
    with pytest.raises(FileNotFoundError, match="part-00"):
        parts.unpack(tmp_path, tmp_path / "none")


# --- headroom ---


def test_within_map_is_the_ranking_without_the_query_itself() -> None:
    random = np.random.default_rng(0)
    embedding, labels = random.normal(size=(20, 6)), random.integers(0, 4, 20)
    labels[0] = 9
    values = []
    for n in range(1, 20):
        rest = np.arange(20) != n
        scores = rank(embedding[n : n + 1], embedding[rest], labels[n : n + 1], labels[rest]).means()
        values.append(scores["map@all"])
    assert headroom.within_map(embedding, labels) == pytest.approx(np.mean(values), abs=1e-9)


def test_style_figures_of_features_that_are_style_alone() -> None:
    domains = np.array(["a", "b"] * 30)
    embedding = np.where(domains == "a", 1.0, -1.0)[:, None] + np.random.default_rng(0).normal(size=(60, 4)) * 0.1
    share, chance = headroom.neighbour_share(embedding, domains)
    assert share == 1.0
    assert chance == pytest.approx(29 / 59)
    assert headroom.domain_probe(embedding[:40], domains[:40], embedding[40:], domains[40:]) == 1.0


def test_supervised_contrastive_by_hand() -> None:
    embedding = F.normalize(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), dim=1)
    labels = torch.tensor([0, 0, 1])
    cosine = (embedding @ embedding.T / 0.5).tolist()
    expected = 0.0
    for anchor, positive, other in ((0, 1, 2), (1, 0, 2)):
        both = torch.tensor([cosine[anchor][positive], cosine[anchor][other]])
        expected += float(both.logsumexp(0) - both[0]) / 2
    assert float(headroom.supervised_contrastive(embedding, labels, 0.5)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("scores", "following"),
    [
        ({1e-4: 0.5, 3e-4: 0.4, 1e-3: 0.3}, [3e-5]),
        ({3e-5: 0.6, 1e-4: 0.5}, [9e-6]),
        ({1e-4: 0.3, 3e-4: 0.4, 1e-3: 0.5}, [3e-3]),
        ({1e-4: 0.3, 3e-4: 0.5, 1e-3: 0.4}, []),
    ],
)
def test_the_range_of_learning_rates_grows_beyond_its_best_end(
    scores: dict[float, float], following: list[float]
) -> None:
    trials = [{"learning_rate": rate, "map@all": score} for rate, score in scores.items()]
    assert headroom.beyond(trials) == following


def test_headroom_starts_at_zero_shot_and_uses_no_test_class(tmp_path: Path, tokenizer: object) -> None:
    from methods.parts.backbone import Backbone

    torch.manual_seed(0)
    build_model(SIZES).save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")  # type: ignore[attr-defined]
    backbone, dataset = Backbone.load(tmp_path / "clip"), PictoDomains()
    config = headroom.HeadroomConfig(
        head_rates=(1e-12,), head_steps=1, tune_rates=(1e-12,), tune_steps=1, tune_batch=8, validations=1
    )
    adaptation = headroom.Adaptation(backbone, dataset, config)
    classes = sorted(set(dataset.table["class"]))
    split = dataset.table.drop_duplicates("class").set_index("class")["split"]
    assert {split[classes[n]] for n in adaptation.train.labels} == {"train"}
    assert {split[classes[n]] for n in adaptation.query.labels} == {"val"}
    assert "freehand" not in {*adaptation.train.domains, *adaptation.query.domains}
    result = headroom.measure_headroom(backbone, dataset, config)
    assert set(result["headroom"]) == {"linear_probe", "metric_head", "full_finetune"}
    for name in ("linear_probe", "metric_head"):
        assert result["headroom"][name] == pytest.approx(0, abs=1e-4)
    assert abs(result["headroom"]["full_finetune"]) < 0.01, "bf16 where the CPU has it"
    from methods.zero_shot import ZeroShot

    query, gallery = (ZeroShot(backbone).encode_images(p.pixels) for p in (adaptation.query, adaptation.gallery))
    assert result["zero_shot"]["map@all"] == pytest.approx(adaptation.score(query, gallery), abs=1e-4)
    assert "zero-shot" in headroom.summary("x", result)


def test_the_card_of_a_run_of_pairs_stands_beside_clip(folder: Path, tmp_path: Path) -> None:
    from benchmarks.pretrain.release import _card, export
    from methods.parts.backbone import Backbone

    run = _run(Corpus(folder, pack_collections=False), tmp_path / "run", 1, resume=False)
    record = export(tmp_path / "run", "checkpoint", tmp_path / "export")
    backbone = Backbone.load(tmp_path / "export")
    heads = {
        name: {"map@all": 0.5, "edge": False, "best": {}} for name in ("linear_probe", "metric_head", "full_finetune")
    }
    style = {
        "domain_probe": 0.9,
        "domain_chance": 0.2,
        "neighbours": 0.3,
        "neighbours_chance": 0.1,
        "within": {"a": 0.4},
    }
    result = {
        "top1": 0.25,
        "classes": 266,
        "domains": {},
        "headroom": {
            "style": style,
            "zero_shot": {"map@all": 0.4},
            "headroom": dict.fromkeys(heads, 0.1),
            "held_out": "freehand",
            **heads,
        },
    }
    text = _card("3", record, backbone, result, result, {"v3": result, "other": result})
    assert "| loss | symmetric InfoNCE over image-text pairs | the same; no term among images |" in text
    assert "| full fine-tuning | 0.500 (+10.0) | 0.500 (+10.0) |" in text
    assert "Every drawing whose name holds a test class" not in text
    record["corpus"]["test_classes"] = False
    assert "Every drawing whose name holds a test class" in _card("3", record, backbone, result, result, {})
    assert run.step == 1


# --- compact checkpoints ---


@given(
    st.lists(
        st.floats(0, 1e6, width=32) | st.floats(2.0**-60, 2.0**-20, width=32) | st.just(0.0), min_size=1, max_size=40
    )
)
def test_a_squeezed_moment_stays_within_a_few_percent(values: list[float]) -> None:
    moment = torch.tensor(values)
    again = compact.restore(*compact.squeeze(moment))
    assert torch.equal(again == 0, moment == 0), "a denominator is never lost"
    kept = moment > 2.0**-60
    ratio = (again[kept] / moment[kept]).sqrt()
    assert ((ratio > 0.9) & (ratio < 1.11)).all()


def test_a_compact_checkpoint_goes_on_near_where_it_was(folder: Path, tmp_path: Path) -> None:
    corpus = Corpus(folder)
    run = _run(corpus, tmp_path / "run", 3, resume=False)
    size = compact.write(tmp_path / "run", "checkpoint", tmp_path / "small")
    assert size < sum(file.stat().st_size for file in (tmp_path / "run").glob("checkpoint.*"))
    again = Trainer(corpus, tmp_path / "small", SIZES, run.config)
    assert again.step == 3
    for name, value in run.model.state_dict().items():
        assert torch.allclose(again.model.state_dict()[name], value, rtol=1e-3, atol=1e-4), name
    assert again.losses(3).item() == pytest.approx(run.losses(3).item(), rel=0.01)
    again.train()
    assert again.step == 6
    with pytest.raises(FileNotFoundError, match="train first"):
        compact.write(tmp_path / "run", "none", tmp_path / "x")
