"""Sets of templates, sentences and names of classes, the domain's word: texts, means, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from benchmarks.run import main as run
from benchmarks.store.files import ResultStore
from methods.interface import NotApplicableError, NotFittedError, TrainingData, stated
from methods.parts.backbone import Backbone
from methods.parts.templates import IMAGENET, IMAGENET_BEST, TextsError, class_texts, templates_of
from methods.zero_shot import ZeroShot, ZeroShotConfig
from methods.zero_shot_domain import WORDS, ZeroShotDomain, ZeroShotDomainConfig, domain_words

NAMES = ["cat", "dog_house"]


def write(path: Path, value: Any) -> str:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def naive(backbone: Backbone, texts: list[list[str]]) -> torch.Tensor:
    """Each class's mean by a loop over its texts, one at a time."""
    rows = []
    for of_class in texts:
        total = torch.zeros(backbone.embed_dim)
        for text in of_class:
            one = backbone.encode_texts([text])[0].detach()
            total = total + one / one.norm()
        rows.append(total / total.norm())
    return torch.stack(rows)


# --- the sets ---------------------------------------------------------------------------------------------------------


def test_the_sets_are_clips() -> None:
    assert len(IMAGENET) == len(set(IMAGENET)) == 80 and len(IMAGENET_BEST) == 7
    assert set(IMAGENET_BEST) < set(IMAGENET)
    assert all(template.count("{}") == 1 for template in IMAGENET)
    assert (IMAGENET[0], IMAGENET[-1]) == ("a bad photo of a {}.", "a tattoo of the {}.")


@pytest.mark.parametrize("name", ["imagenet", "imagenet_best"])
def test_a_class_is_the_mean_of_its_templates(tiny_backbone: Backbone, name: str) -> None:
    method = ZeroShot(tiny_backbone, ZeroShotConfig(templates=name))
    texts = [[one.replace("{}", word) for one in templates_of(name)] for word in ("cat", "dog house")]
    torch.testing.assert_close(method.encode_classes(NAMES), naive(tiny_backbone, texts), rtol=1e-4, atol=1e-5)


def test_one_template_in_a_file_is_that_template(tiny_backbone: Backbone, tmp_path: Path) -> None:
    file = write(tmp_path / "one.txt", "# a comment\na drawing of a {}\n\n")
    plain = ZeroShot(tiny_backbone, ZeroShotConfig(template="a drawing of a {}"))
    given = ZeroShot(tiny_backbone, ZeroShotConfig(templates=file))
    torch.testing.assert_close(given.encode_classes(NAMES), plain.encode_classes(NAMES), rtol=1e-5, atol=1e-6)


def test_sentences_are_those_of_the_class(tiny_backbone: Backbone, tmp_path: Path) -> None:
    sentences = {"Cat": ["A cat purrs.", "Cats have whiskers."], "dog house": ["A small house for a dog."]}
    file = write(tmp_path / "cupl.json", sentences)
    method = ZeroShot(tiny_backbone, ZeroShotConfig(templates=file))
    expected = naive(tiny_backbone, list(sentences.values()))
    torch.testing.assert_close(method.encode_classes(NAMES), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.encode_classes(NAMES[::-1]), expected.flip(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(NotApplicableError, match=r"no sentences for the class 'bird' and 1 more; add them"):
        method.encode_classes(["bird", "cat", "fish"])


def test_names_replace_a_classs_own(tmp_path: Path) -> None:
    names = write(tmp_path / "names.json", {"dog house": "kennel"})
    assert class_texts(NAMES, "a {}", class_names=names) == ([["a cat"], ["a kennel"]], [])
    sentences = write(tmp_path / "cupl.json", {"cat": ["c"], "kennel": ["k"]})
    assert class_texts(NAMES, "a {}", sentences, names) == ([["c"], ["k"]], [])
    assert class_texts(NAMES, "a {}", sentences)[1] == ["dog_house"]


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("none.txt", None, "none.txt cannot be read (No such file or directory)"),
        ("empty.txt", "\n# nothing\n", "empty.txt has no template"),
        ("bad.txt", "a photo of a {}\na photo\n", "must have one place for the class name"),
        ("bad.json", "{", "bad.json is not JSON"),
        ("list.json", ["a"], "list.json must hold {class: [sentence, ...]}"),
        ("flat.json", {"cat": "a cat"}, "the sentences of 'cat' must be a list of at least one text"),
        ("none.json", {"cat": []}, "the sentences of 'cat' must be a list of at least one text"),
        ("twice.json", {"Cat": ["a"], "cat": ["b"]}, "'cat' is there twice"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path, file: str, content: Any, text: str) -> None:
    if content is not None:
        write(tmp_path / file, content)
    with pytest.raises(TextsError) as error:
        ZeroShotConfig(templates=str(tmp_path / file))
    assert text in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("zero_shot: templates: ")


def test_unknown_sets_say_what_there_is() -> None:
    with pytest.raises(TextsError, match=r"take imagenet, imagenet_best, or the path of a \.txt or \.json file"):
        ZeroShotConfig(templates="imagnet")
    with pytest.raises(TextsError, match="'cupl' is a file that CuPL's authors publish"):
        ZeroShotConfig(templates="cupl")
    with pytest.raises(TextsError, match=r"zero_shot: class_names: .* cannot be read"):
        ZeroShotConfig(class_names="gone.json")


def test_the_default_is_stated_as_before() -> None:
    assert stated(ZeroShotConfig()) == {"template": "a photo of a {}"}


# --- the domain's word ------------------------------------------------------------------------------------------------


class NoImages:
    content: tuple[str, ...] = ()

    def __len__(self) -> int:
        return 3

    def pixels(self, index: torch.Tensor) -> torch.Tensor:
        raise AssertionError("no image is needed")


def shown(target: str | None, domains: tuple[str, ...] = ("photo", "quickdraw", "unused")) -> TrainingData:
    return TrainingData(
        protocol="test", images=NoImages(), labels=torch.zeros(3, dtype=torch.int64),  # type: ignore[arg-type]
        domains=torch.tensor([0, 1, 1]), class_names=("cat",), domain_names=domains, target_domain=target,
    )  # fmt: skip


def test_the_word_is_the_targets_where_it_is_named(tiny_backbone: Backbone) -> None:
    method = ZeroShotDomain(tiny_backbone)
    method.fit(shown("art_painting"), seed=0, log=lambda **_: None)
    texts = [["a art painting of a cat"], ["a art painting of a dog house"]]
    torch.testing.assert_close(method.encode_classes(NAMES), naive(tiny_backbone, texts), rtol=1e-4, atol=1e-5)


def test_an_unseen_domain_gets_the_mean_over_the_training_domains(tiny_backbone: Backbone) -> None:
    method = ZeroShotDomain(tiny_backbone)
    method.fit(shown(None), seed=0, log=lambda **_: None)
    assert method.domains == ("photo", "quickdraw"), "a domain without training images has no word"
    texts = [["a photo of a cat", "a quick drawing of a cat"]]
    torch.testing.assert_close(method.encode_classes(["cat"]), naive(tiny_backbone, texts), rtol=1e-4, atol=1e-5)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(method.encode_images(pixels), ZeroShot(tiny_backbone).encode_images(pixels))
    assert F.normalize(method.encode_classes(NAMES), dim=-1).shape == (2, tiny_backbone.embed_dim)


def test_words_are_known_named_or_given(tmp_path: Path) -> None:
    assert domain_words(("Real_World", "caltech101", "clipart")) == ("photo", "clipart")
    assert all(word == word.strip() for word in WORDS.values())
    file = write(tmp_path / "words.json", {"clipart": "cartoon"})
    assert domain_words(("clipart", "sketch"), file) == ("cartoon", "sketch")


def test_it_is_saved_and_loaded(tiny_backbone: Backbone, tmp_path: Path) -> None:
    method = ZeroShotDomain(tiny_backbone)
    with pytest.raises(NotFittedError):
        method.encode_classes(NAMES)
    method.fit(shown("sketch"), seed=0, log=lambda **_: None)
    method.save(tmp_path / "it")
    again = ZeroShotDomain.load(tmp_path / "it", tiny_backbone)
    assert torch.equal(again.encode_classes(NAMES), method.encode_classes(NAMES))


@pytest.mark.parametrize("sentence", ["a {name}", "a {domain}", "a {domain} of {name} {x}", "{name} {domain} {name}"])
def test_a_sentence_needs_both_places(sentence: str) -> None:
    with pytest.raises(ValueError, match=r"must have \{domain\} and \{name\} once each"):
        ZeroShotDomainConfig(sentence=sentence)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sweep(tiny_dataset: type, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)

    def start(out: Path, *more: str, methods: str = "zero_shot,zero_shot_domain") -> int:
        common = ["--datasets", "tiny", "--backbone", str(tiny_folder), "--preset", "smoke", "--jobs", "1"]
        return run([*common, "--methods", methods, "--protocols", "uda", "--device", "cpu", "--out", str(out), *more])

    return start


def test_a_run_takes_them_and_the_key_names_the_files_content(sweep: Any, tmp_path: Path) -> None:
    names = write(tmp_path / "names.json", {"one disc": "circle"})
    out = tmp_path / "results"
    assert sweep(out, methods="zero_shot") == 0
    assert sweep(out, "--templates", "imagenet_best", "--class-names", names, methods="zero_shot") == 0
    write(tmp_path / "names.json", {"one disc": "round thing"})
    assert sweep(out, "--templates", "imagenet_best", "--class-names", names, methods="zero_shot") == 0
    records = list(ResultStore(out).records())
    assert len({record.key for record in records}) == 3 and {record.status for record in records} == {"ok"}
    assert sorted(len(record.cell.config) for record in records) == [1, 3, 3]


def test_what_cannot_be_used_stops_the_run_in_one_line(
    sweep: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, text in (
        (["--templates", "gone.txt"], "--templates: gone.txt cannot be read"),
        (["--templates", "cupl"], "a file that CuPL's authors publish"),
        (["--class-names", "gone.json"], "--class-names: gone.json cannot be read"),
    ):
        assert sweep(tmp_path, *more) == 2
        assert text in capsys.readouterr().err.strip().splitlines()[-1]
    assert sweep(tmp_path, "--templates", "imagenet", methods="coop") == 2
    assert "--templates: no method of this run has" in capsys.readouterr().err


def test_the_domains_word_changes_the_classes_of_each_target(sweep: Any, tmp_path: Path) -> None:
    assert sweep(tmp_path) == 0
    records = {record.cell.method: record for record in ResultStore(tmp_path).records()}
    assert {record.status for record in records.values()} == {"ok"}
    plain, named = (records[name].scores for name in ("zero_shot", "zero_shot_domain"))
    assert plain["source"].metrics == named["source"].metrics, "retrieval reads no text"
