"""Names of the shipped backbones: the default, the versions, what v2 is."""

import json
from pathlib import Path

import pytest

from benchmarks.backbones import sources


def _ship(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")


def test_the_default_is_the_reference_version_and_not_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SHIPPED", tmp_path)
    _ship(tmp_path, "picto-clip-v2", "picto-clip-v3", "picto-clip-v9")
    assert sources.resolve("picto-clip") == ("picto-clip-v3", str(tmp_path / "picto-clip-v3"))
    assert sources.resolve("picto-clip-v2") == ("picto-clip-v2", str(tmp_path / "picto-clip-v2"))


def test_a_version_has_one_name_in_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SHIPPED", tmp_path)
    _ship(tmp_path, "picto-clip-v2", "picto-clip-unseen")
    assert sources.resolve("picto-clip-invariant") == sources.resolve("picto-clip-v2")
    assert sources.resolve("picto-clip-unseen") == ("picto-clip-unseen", str(tmp_path / "picto-clip-unseen"))


def test_the_shipped_versions_load_and_their_cards_state_what_was_measured() -> None:
    assert {"picto-clip-v2", "picto-clip-v3"} <= set(sources.shipped_versions())
    for name, folder in sources.shipped_versions().items():
        backbone = sources.load(name, device="cpu", precision="float32")
        assert (backbone.name, backbone.image_size) == (name, 64)
        measured = json.loads((folder / "measurements.json").read_text())
        assert measured["weights_hash"] == backbone.weights_hash
        assert f"**{measured['train_and_validation_classes']['top1']:.1%}**" in (folder / "README.md").read_text()


def test_without_the_reference_version_the_newest_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SHIPPED", tmp_path)
    _ship(tmp_path, "picto-clip-v9", "picto-clip-v10", "picto-clip-unseen")
    assert sources.resolve("picto-clip")[0] == "picto-clip-v10"
    with pytest.raises(
        ValueError, match=r"picto-clip-v3 is not in this installation \(there: picto-clip-unseen, picto-clip-v9, "
    ):
        sources.resolve("picto-clip-v3")
