"""Pretraining of picto-clip on a few drawings made here: corpus, captions, resume, release."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from benchmarks.datasets.build import picto_sources
from benchmarks.pretrain import corpus as corpus_module
from benchmarks.pretrain.captions import CaptionWriter, concept_of
from benchmarks.pretrain.corpus import clean_name
from benchmarks.pretrain.data import MAX_REGIONS, Corpus, find_regions, move, paint_regions
from benchmarks.pretrain.model import END, START, ModelConfig, train_tokenizer
from benchmarks.pretrain.train import TrainConfig, Trainer, contrastive_loss, learning_rate

SIZES = ModelConfig(
    image_size=32, patch_size=16, vision_width=32, vision_layers=1, text_width=32, text_layers=1, embed_dim=16
)


def _shape(kind: int, spread: int, fill: str) -> str:
    if kind == 0:
        return f'<circle cx="12" cy="12" r="{4 + spread}" fill="none" stroke="{fill}" stroke-width="2"/>'
    if kind == 1:
        return f'<path d="M{2 + spread} 2h8v{18 - spread}h-8z" fill="{fill}"/>'
    if kind == 3:
        return f'<path d="M2 2l20 {spread}v3L9 9l{spread + 4} 13z" fill="{fill}"/>'
    return f'<path d="M12 {2 + spread}L22 22L2 22z" fill="none" stroke="{fill}" stroke-width="{1 + spread % 3}"/>'


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A fake package of two free collections, one that feeds PictoDomains, one of brand marks, and clip art."""
    root = tmp_path_factory.mktemp("sources")
    (root / "package" / "json").mkdir(parents=True)
    names = ["car", "dog-fill", "bicycle-24", "house-outline", "cup-2", "fish", "key", "moon"]
    index = {}
    for prefix, licence, category, colour, shift in (
        ("free-a", "MIT", "UI", "currentColor", 0),
        ("free-b", "CC0-1.0", "Emoji", "#c03020", 1),
        ("noto", "Apache-2.0", "Emoji", "#2030c0", 3),
        ("marks", "MIT", "Logos", "currentColor", 2),
        ("closed", "CC-BY-NC-4.0", "UI", "currentColor", 2),
    ):
        kinds = [3] if prefix == "noto" else [0, 1, 2]
        bodies = [_shape(kinds[n % len(kinds)], (n + shift) % 6, colour) for n in range(len(names))]
        icons = {name: {"body": body} for name, body in zip(names, bodies, strict=True)}
        info = {"name": prefix, "license": {"spdx": licence}, "author": {"name": "A"}, "category": category}
        index[prefix] = info
        data = {"prefix": prefix, "icons": icons, "width": 24, "height": 24}
        (root / "package" / "json" / f"{prefix}.json").write_text(json.dumps(data))
    (root / "package" / "collections.json").write_text(json.dumps(index))
    art = root / "clipart" / "svg" / "animals"
    art.mkdir(parents=True)
    (art / "cat_someone_01.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="90mm" height="90mm">'
        '<rect width="40" height="9" fill="#070"/></svg>'
    )
    return root / "package", root / "clipart"


@pytest.fixture(scope="module")
def corpus(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    pytest.importorskip("resvg_py")
    folder = tmp_path_factory.mktemp("corpus")
    patch = pytest.MonkeyPatch()
    patch.setattr(picto_sources, "DOMAIN_COLLECTIONS", {"flat": ("noto",), "clipart": ("openclipart",)})
    try:
        corpus_module.build(*sources, folder, size=32, jobs=1)
    finally:
        patch.undo()
    return Corpus(folder)


def test_corpus_leaves_out_what_feeds_the_data_set(corpus: Corpus) -> None:
    collections = set(corpus.index["collection"])
    assert collections == {"free-a", "free-b", "openclipart"}
    assert set(corpus.index.loc[corpus.index["collection"] == "free-a", "kind"]) == {"mono"}
    assert set(corpus.index.loc[corpus.index["collection"] == "free-b", "kind"]) == {"colour"}
    assert "car" in set(corpus.index["phrase"])
    assert "dog" in set(corpus.index["phrase"])


def test_purge_drops_what_equals_a_image_of_the_pack(corpus: Corpus, tmp_path: Path) -> None:
    import io
    import shutil

    from PIL import Image

    folder = tmp_path / "corpus"
    shutil.copytree(next(Path(f.filename).parent for f in [corpus.mono]), folder)
    row = corpus.index[corpus.index["kind"] == "mono"].iloc[0]
    ink = np.asarray(corpus.mono[row["row"]])
    stream = io.BytesIO()
    Image.fromarray(np.repeat(255 - ink[:, :, None], 3, axis=2)).resize((96, 96)).save(stream, "PNG")
    pack = pd.DataFrame(
        [{"id": "x", "image": {"bytes": stream.getvalue(), "path": ""}, "collection": "noto", "name": "x"}]
    )
    pack.to_parquet(tmp_path / "pack.parquet")
    dropped = corpus_module.purge(folder, tmp_path / "pack.parquet", jobs=1)
    assert row["key"] in dropped
    kept = pd.read_parquet(folder / "index.parquet")
    assert row["key"] not in set(kept["key"])
    assert len(kept) + len(dropped) == len(corpus.index)


@pytest.mark.parametrize(
    ("name", "phrase", "style"),
    [
        ("bicycle-24-filled", "bicycle", "filled"),
        ("shopping-cart", "shopping cart", ""),
        ("house-2-outline", "house", "outline"),
        ("outline", "outline", ""),
        ("3d-glasses", "3d glasses", ""),
    ],
)
def test_clean_name(name: str, phrase: str, style: str) -> None:
    assert clean_name(name) == (phrase, style)


def test_synonyms_share_a_concept_and_abstractions_do_not() -> None:
    assert concept_of("car").key == concept_of("automobile").key
    assert concept_of("bicycles").key == concept_of("bicycle").key
    assert concept_of("car").concrete
    assert not concept_of("download").concrete


def test_captions_depend_on_the_seed_alone_and_fill_the_context() -> None:
    words = ("car", "outline", "travel", "free-a")
    assert [CaptionWriter(1).long(*words) for _ in range(2)] == [CaptionWriter(1).long(*words)] * 2
    texts = [CaptionWriter(seed).long(*words) for seed in range(60)]
    assert max(len(text.split()) for text in texts) > 35
    starts = {text.split()[:1][0] for text in texts}
    assert len(starts) > 5, "the name can be anywhere, so captions begin in many ways"


def test_tokenizer_knows_every_byte_and_ends_with_the_largest_id(tmp_path: Path) -> None:
    sizes = ModelConfig(vocabulary=600)
    tokenizer = train_tokenizer(["a photo of a car", "a cat", "the car and the cat"] * 20, sizes, tmp_path)
    ids = tokenizer("naïve café 日本 q_7!")["input_ids"]
    assert ids[0] == tokenizer.convert_tokens_to_ids(START) == 598
    assert ids[-1] == tokenizer.convert_tokens_to_ids(END) == 599
    assert 599 not in ids[:-1], "no character is unknown"
    assert tokenizer("A_CAR")["input_ids"] == tokenizer("a car")["input_ids"]


def test_regions_are_what_ink_encloses() -> None:
    ink = np.zeros((1, 32, 32), dtype=np.uint8)
    ink[0, 4:20, 4:20] = 255
    ink[0, 6:18, 6:11] = 0
    ink[0, 6:18, 13:16] = 0
    regions = find_regions(ink)[0]
    assert regions[10, 8] == 1, "the larger region comes first"
    assert regions[10, 14] == 2
    assert regions[0, 0] == 0
    assert regions[10, 12] == 0
    assert regions.max() <= MAX_REGIONS


def test_painting_and_moving_stay_in_range_and_follow_the_generator() -> None:
    ink = torch.rand(6, 32, 32)
    regions = torch.randint(0, MAX_REGIONS + 1, (6, 32, 32))
    one, two = (
        move(paint_regions(ink, regions, generator), generator)
        for generator in (torch.Generator().manual_seed(5), torch.Generator().manual_seed(5))
    )
    assert torch.equal(one, two)
    assert one.shape == (6, 3, 32, 32)
    assert float(one.min()) >= -1e-5
    assert float(one.max()) <= 1 + 1e-5


def test_loss_is_the_multi_positive_contrastive_loss() -> None:
    torch.manual_seed(0)
    images, texts = F.normalize(torch.randn(4, 8), dim=1), F.normalize(torch.randn(2, 8), dim=1)
    concept, scale = torch.tensor([0, 0, 1, 1]), torch.tensor(7.0)

    def log_softmax(row: list[float], at: int) -> float:
        return row[at] - math.log(sum(math.exp(v) for v in row))

    cosine = (scale * images @ texts.T).tolist()
    to_text = -sum(log_softmax(cosine[i], int(concept[i])) for i in range(4)) / 4
    columns = [[cosine[i][c] for i in range(4)] for c in range(2)]
    to_image = -sum((log_softmax(columns[c], 2 * c) + log_softmax(columns[c], 2 * c + 1)) / 2 for c in range(2)) / 2
    among = (scale * images @ images.T).tolist()
    partner = [1, 0, 3, 2]
    itself = 0.0
    for i in range(4):
        others = [j for j in range(4) if j != i]
        itself -= log_softmax([among[i][j] for j in others], others.index(partner[i])) / 4
    expected = (to_text + to_image) / 2 + 0.5 * itself
    assert float(contrastive_loss(images, texts, concept, scale, image_weight=0.5)) == pytest.approx(expected, rel=1e-5)


def test_learning_rate_warms_up_holds_and_decays() -> None:
    config = TrainConfig(steps=100, warmup_steps=10, decay_share=0.3, learning_rate=1.0)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:70] == [1.0] * 61
    assert rates[85] == pytest.approx(0.5)
    assert rates[100] == 0


def test_a_resumed_run_is_the_uninterrupted_run(corpus: Corpus, tmp_path: Path) -> None:
    recipe = {"concepts": 3, "views": 2, "warmup_steps": 2, "save_every": 3, "concrete_steps": 2, "long_every": 3}
    whole = Trainer(corpus, tmp_path / "whole", SIZES, TrainConfig(steps=6, **recipe))
    whole.train()
    for steps in (3, 6):
        # The first half runs under the same schedule and is cut at its checkpoint.
        half = Trainer(corpus, tmp_path / "halves", SIZES, TrainConfig(steps=6, **recipe))
        half.config = TrainConfig(steps=6, **recipe)
        while half.step < steps:
            for group in half.optimizer.param_groups:
                group["lr"] = learning_rate(half.step, half.config)
            half.losses(half.step).backward()
            torch.nn.utils.clip_grad_norm_(half.model.parameters(), half.config.gradient_clip)
            half.optimizer.step()
            half.optimizer.zero_grad(set_to_none=True)
            half.step += 1
        half.save("checkpoint")
    assert (tmp_path / "whole/tokenizer/tokenizer.json").read_bytes() == (
        tmp_path / "halves/tokenizer/tokenizer.json"
    ).read_bytes()
    first, second = whole.model.state_dict(), half.model.state_dict()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    record = json.loads((tmp_path / "whole" / "checkpoint.json").read_text())
    assert record["step"] == 6
    assert record["history"][-1]["pictures"] == 36


def test_other_sizes_do_not_resume(corpus: Corpus, tmp_path: Path) -> None:
    run = Trainer(corpus, tmp_path, SIZES, TrainConfig(steps=1, concepts=2, views=1))
    run.save("checkpoint")
    other = ModelConfig(**{**vars(SIZES), "vision_layers": 2})
    with pytest.raises(ValueError, match="other model sizes"):
        Trainer(corpus, tmp_path, other, TrainConfig(steps=1))


def test_a_release_loads_like_any_clip(corpus: Corpus, tmp_path: Path) -> None:
    from benchmarks.pretrain.release import export
    from methods.parts.backbone import Backbone

    run = Trainer(corpus, tmp_path / "run", SIZES, TrainConfig(steps=1, concepts=2, views=1))
    run.save("checkpoint")
    export(tmp_path / "run", "checkpoint", tmp_path / "export")
    backbone = Backbone.load(tmp_path / "export")
    assert backbone.context_length == 64
    assert backbone.image_size == 32
    pixels = torch.rand(2, 3, 32, 32)
    features = backbone.encode_images(backbone.normalize(pixels))
    run.model.eval()
    with torch.no_grad():
        expected = run.model.get_image_features(pixel_values=(pixels - 1.0) / 0.35).pooler_output
    assert torch.allclose(features, expected, atol=0.02), "float16 weights, same function"
    assert backbone.encode_texts(["a photo of a car"]).shape == (1, 16)


def test_versions_are_numbers_or_words() -> None:
    from benchmarks.pretrain.release import version_label

    assert [version_label(version) for version in ("3", "3.1", "unseen")] == ["v3", "v3.1", "unseen"]
    with pytest.raises(ValueError, match=r"--version '../v3' is neither a number"):
        version_label("../v3")
