"""Image folders: what is read, what is left out and why, decoding, the image cache."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from benchmarks.datasets import decoding, image_cache, image_workers
from benchmarks.datasets.base import DatasetCard, DatasetError, dataset_root
from benchmarks.datasets.folder_dataset import FolderDataset, canonical_classes
from benchmarks.datasets.image_lists import read_image_list
from benchmarks.datasets.splits import class_splits, held_back
from benchmarks.datasets.tree_scan import Place, join_listings, scan, scan_listed
from tests.datasets.trees import class_tree, damage, image_bytes, write_images

PLACES = (Place("photo", ("Photo", "photos")), Place("draw", ("draw/256",)))
CLASSES = ("ant", "bee", "hot_dog")


class Small(FolderDataset):
    card = DatasetCard(
        "small", "Small", "v1", "here", "MIT", gallery_domain="photo", layout="ROOT/{photo,draw}/CLASS/*"
    )
    places = PLACES
    also_named = ("Small",)

    def arrange(self, found: pd.DataFrame) -> pd.DataFrame:
        found = canonical_classes(self, found, CLASSES, {"bumblebee": "bee"})
        split = found["class"].map({"ant": "train", "bee": "val", "hot_dog": "test"})
        return found.assign(split=split, held_back=held_back(found, ["ant"], "photo"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "data" / "small"
    class_tree(made, ("photos", "draw/256"), ("ant", "Bumble-Bee", "hot-dog"), 4)
    return made


def test_a_sorted_listing_with_domains_and_classes(root: Path) -> None:
    listing = scan(root, PLACES)
    keys = listing.images["key"].tolist()
    assert keys == sorted(keys)
    assert len(keys) == 2 * 3 * 4
    first = listing.images.iloc[0]
    assert (first["key"], first["class"], first["domain"]) == ("draw/256/Bumble-Bee/0000.jpg", "Bumble-Bee", "draw")
    assert first["bytes"] == (root / first["path"]).stat().st_size
    assert listing.findings == ()


def test_everything_odd_is_listed_with_its_reason_and_left_out(root: Path, tmp_path: Path) -> None:
    before = set(scan(root, PLACES).images["key"])
    harm = damage(root, "photos/ant", tmp_path / "outside")
    listing = scan(root, PLACES)
    assert set(listing.images["key"]) - before == {*harm.broken, *harm.whole}
    reasons = {finding.path: finding.reason for finding in listing.findings if finding.kind != "system_file"}
    assert tuple(sorted(reasons)) == harm.left_out
    (system,) = (finding for finding in listing.findings if finding.kind == "system_file")
    assert str(system) == "photos/ant: system files, such as '.hidden.jpg'"
    assert all("\n" not in str(finding) for finding in listing.findings)
    said = {path.rpartition("/")[2]: reason for path, reason in reasons.items()}
    assert said["notes.txt"] == "not an ending that is read; not read"
    assert said["nested"] == "a folder; not read"
    assert said["leaves.jpg"].startswith("a link that leaves the data set's folder (to ")
    assert said["loop.jpg"] == "a link that leads to itself"
    assert said["dangling.jpg"] == "a link to nothing"
    assert said["again.jpg"] == "a link to photos/ant/UPPER.JPG, which is listed already"
    assert said["empty class"] == "has no images"
    assert said["linked away"].startswith("a link that leaves the data set's folder")
    assert said["linked back"] == "a link that leads back to a folder above it; not followed"


def test_links_inside_the_root_are_followed_once(root: Path) -> None:
    write_images(root, ["store/0.jpg", "store/1.jpg"])
    (root / "photos" / "cat").symlink_to(root / "store")
    (root / "photos" / "cats").symlink_to("cat")
    (root / "photos" / "aunt").symlink_to("ant")
    (root / "photos" / "lone.jpg").symlink_to("ant/0000.jpg")
    listing = scan(root, PLACES)
    assert {"photos/cat/0.jpg", "photos/cat/1.jpg"} <= set(listing.images["key"])
    assert {finding.path: finding.reason for finding in listing.findings} == {
        "photos/aunt": "a link to photos/ant, which is listed already",
        "photos/cats": "a link to photos/cat, which is listed already",
        "photos/lone.jpg": "beside the class folders; not read",
    }


def test_a_domain_that_is_a_link_to_elsewhere_is_named(root: Path, tmp_path: Path) -> None:
    (root / "photos").rename(tmp_path / "moved")
    (root / "photos").symlink_to(tmp_path / "moved")
    with pytest.raises(
        DatasetError, match=r"^small: .* no images of the domain photo \(photos: a link that leaves the"
    ):
        Small(root).check()


@pytest.mark.parametrize(
    ("break_it", "line"),
    [
        (lambda root: (root / "photos").rename(root / "other"), "has no folder Photo or photos; the layout is ROOT"),
        (lambda root: (root / "draw").rename(root / "other"), "has no folder draw/256; the layout is"),
        (lambda root: [f.unlink() for f in root.rglob("*.jpg")], "has no images in its class folders"),
        (lambda root: [f.unlink() for f in root.rglob("hot-dog/*")], "1 of 3 classes have no images under"),
        (lambda root: (root / "broken.txt").write_bytes(b"\xff"), r"broken\.txt is not UTF-8 text: byte 0 is wrong"),
        (
            lambda root: (root / "broken.txt").write_text("\n".join(scan(root, PLACES).images["key"])),
            r"broken\.txt names every image; delete it, then verify again$",
        ),
    ],
)
def test_what_cannot_be_used_fails_with_one_line(root: Path, break_it: object, line: str) -> None:
    break_it(root)  # type: ignore[operator]
    with pytest.raises(DatasetError, match=line) as caught:
        Small(root).check()
    assert str(caught.value).startswith("small: ")
    assert "\n" not in str(caught.value)


def test_no_root_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"^small is not shipped: give --data-root FOLDER, where FOLDER/small is ROOT"
    ):
        Small(None).check()
    with pytest.raises(
        DatasetError, match=r"^small: .*/nowhere does not exist; the layout is ROOT/.* \(source: here\)$"
    ):
        Small(tmp_path / "nowhere").check()
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"^small: .*/file is a file; give the folder with the images$"):
        Small(tmp_path / "file").check()


def test_another_name_of_the_folder_is_found(root: Path) -> None:
    root.rename(root.with_name("Small"))
    Small(root).check()


def test_a_root_of_another_name_is_taken_at_its_word(root: Path) -> None:
    root.rename(root.with_name("Small"))
    with pytest.raises(DatasetError, match=r"^small: .*/data/copy does not exist; the layout is "):
        Small(root.with_name("copy")).check()


@pytest.mark.parametrize(
    ("given", "meant"),
    [("", "small"), ("small/photos", "small"), ("small/small", "small"), ("outer", "outer/small")],
)
def test_a_root_beside_the_right_one_is_told_the_right_one(root: Path, given: str, meant: str) -> None:
    data_root = root.parent
    if meant.startswith("outer"):
        (data_root / "outer").mkdir()
        root.rename(data_root / "outer" / "small")
    with pytest.raises(DatasetError, match="the layout is ") as caught:
        Small(data_root / given).check()
    assert str(caught.value).endswith(f"; did you mean {data_root / meant}?")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", ["small.zip", "small/photos.tar.gz"])
def test_archives_that_were_not_unpacked_are_named(tmp_path: Path, packed: str) -> None:
    (tmp_path / packed).parent.mkdir(exist_ok=True)
    (tmp_path / packed).write_bytes(b"PK")
    with pytest.raises(DatasetError, match=rf"^small: .*; unpack {Path(packed).name} first$"):
        Small(tmp_path / "small").check()


def test_what_the_system_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetError, match=r"^small: .*/x+ cannot be read: File name too long$"):
        Small(tmp_path / ("x" * 300)).check()

    def refuses(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuses)
    with pytest.raises(DatasetError, match=r"^small: .* cannot be read: Permission denied$"):
        dataset_root(str(tmp_path), "small")


def test_two_unicode_forms_of_one_name_are_refused(root: Path) -> None:
    name = "photos/ant/é.jpg"
    write_images(root, [unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)])
    if len(list((root / "photos/ant").iterdir())) < 6:
        pytest.skip("this file system keeps one Unicode form only")
    with pytest.raises(DatasetError, match="same name in two Unicode forms"):
        scan(root, PLACES)


def test_keys_and_hash_do_not_depend_on_the_unicode_form(tmp_path: Path) -> None:
    hashes = []
    for form in ("NFC", "NFD"):
        made = tmp_path / form
        write_images(
            made, [unicodedata.normalize(form, f"{d}/{c}é/x.jpg") for d in ("photos", "draw/256") for c in "ab"]
        )
        images_found = scan(made, PLACES).images
        hashes.append((images_found["key"].tolist(), images_found["class"].tolist()))
    assert hashes[0] == hashes[1]


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_names_that_are_not_text_are_named(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root / "photos" / "ant") + b"/bad\xff.jpg")).write_bytes(b"x")
    odd = ("two\nlines", "escape\x1b[31m", "next\x85line", "line\u2028separator")
    for name in odd:
        (root / "photos" / "ant" / f"{name}.jpg").write_bytes(b"x")
    found = [str(finding) for finding in scan(root, PLACES).findings]
    why = "the name has a tab, line break or control character; rename it"
    assert found == [
        *sorted(f"photos/ant/{name + '.jpg'!r}: {why}" for name in odd),
        "photos/ant/bad\\udcff.jpg: the name is not UTF-8; rename it",
    ]
    assert all(line.isprintable() for line in found)


def test_published_lists(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("photos/ant/0000.jpg 0\nphotos/hot dog/1.jpg 12\n\n../secret.jpg 3\n", encoding="utf-8-sig")
    frame = read_image_list(file)
    assert frame.to_dict("list") == {
        "path": ["photos/ant/0000.jpg", "photos/hot dog/1.jpg", "../secret.jpg"],
        "label": [0, 12, 3],
    }
    listing = scan_listed(root, frame["path"], domain="photo")
    assert listing.images[["key", "class", "domain"]].values.tolist() == [["photos/ant/0000.jpg", "ant", "photo"]]
    assert [(one.kind, one.path) for one in listing.findings] == [
        ("missing_image", "../secret.jpg"),
        ("missing_image", "photos/hot dog/1.jpg"),
    ]
    (root / "far").symlink_to(tmp_path)
    (root / "near").symlink_to("photos")
    odd = scan_listed(root, ["photos/ant/1.jpg", "far/list.txt", *["near/ant/0002.jpg"] * 2], domain="photo")
    assert [str(one) for one in odd.findings] == [
        "far/list.txt: behind a link that leaves the data set's folder; not followed",
        "near/ant/0002.jpg: named twice; read once",
        "photos/ant/1.jpg: named in a list, but not there",
    ]
    other = scan_listed(root, ["photos/ant/0001.jpg"], domain="photo", classes=["x"])
    assert join_listings([listing, other]).images["class"].tolist() == ["ant", "x"]
    with pytest.raises(DatasetError, match=r"photos/ant/0000\.jpg is listed twice"):
        join_listings([listing, listing])
    file.write_text("photos/ant/0000.jpg\n")
    with pytest.raises(DatasetError, match=r"list\.txt, line 1: expected 'PATH LABEL', found 'photos/ant/0000\.jpg'"):
        read_image_list(file)
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        read_image_list(tmp_path / "none.txt")
    with pytest.raises(DatasetError, match=r"has none of the 2 images that the list of photo names, such as a/1\.jpg$"):
        scan_listed(root, ["a/1.jpg", "a/2.jpg"], domain="photo")


@pytest.mark.parametrize("label", ["²", "-1", "1.0", "9" * 30, "x\0.jpg 1", "x\x1b.jpg 1"])
def test_a_line_of_a_list_that_cannot_be_meant_is_shown(tmp_path: Path, label: str) -> None:
    file = tmp_path / "list.txt"
    file.write_text(f"a/1.jpg 0\na/2.jpg {label}\n")
    with pytest.raises(DatasetError, match=r"list\.txt, line 2: expected 'PATH LABEL', found 'a/2\.jpg ") as caught:
        read_image_list(file)
    assert str(caught.value).isprintable()


def test_lists_with_tabs_are_read_and_empty_ones_refused(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("a/hot dog.jpg\t3  \r\n")
    assert read_image_list(file).to_numpy().tolist() == [["a/hot dog.jpg", 3]]
    file.write_text("\ufeff\"a/hot dog.jpg\" 3\r\n\r\n'a/it''s.jpg'  4\r\n", encoding="utf-8")
    assert read_image_list(file)["path"].tolist() == ["a/hot dog.jpg", "a/it''s.jpg"]
    file.write_text("\n \n")
    with pytest.raises(DatasetError, match=r"list\.txt is empty; fetch the list again"):
        read_image_list(file)


# --- the data set -----------------------------------------------------------------------------------------------------


def test_the_table_has_canonical_classes_and_rows_in_key_order(root: Path) -> None:
    write_images(root, ["photos/wasp/1.jpg"])
    dataset = Small(root)
    dataset.check()
    assert dataset.classes() == ("ant", "bee", "hot_dog")
    assert dataset.table["key"].is_monotonic_increasing
    assert [str(one) for one in dataset.findings] == ["wasp: not a class of small; its 1 images are left out"]
    held = dataset.table[dataset.table["held_back"]]
    assert set(held["class"]) == {"ant"}
    assert set(held["domain"]) == {"photo"}
    assert len(held) == 1


def test_the_data_hash_follows_names_and_contents_not_place_or_time(root: Path, tmp_path: Path) -> None:
    first = Small(root)
    copy = tmp_path / "copy"
    class_tree(copy, ("photos", "draw/256"), ("ant", "Bumble-Bee", "hot-dog"), 4)
    os.utime(copy / "photos/ant/0000.jpg", (1, 1))
    assert Small(copy).data_hash == first.data_hash
    (copy / "photos/ant/0000.jpg").write_bytes(image_bytes("a/b.png"))
    assert Small(copy).data_hash != first.data_hash
    assert len(set(first.content)) == len(first.table)


def test_broken_images_fail_by_name_until_they_are_left_out_by_name(root: Path, tmp_path: Path) -> None:
    harm = damage(root, "photos/ant", tmp_path / "outside")
    dataset = Small(root)
    rows = np.flatnonzero(dataset.table["key"].isin([*harm.broken, *harm.whole]))
    with pytest.raises(
        DatasetError, match=r"^small: .*/photos/ant/page\.jpg is broken: not an image .*2 of the"
    ) as caught:
        dataset.pixels(rows, 8)
    assert "python -m benchmarks.data verify small --root" in str(caught.value)
    whole = np.flatnonzero(dataset.table["key"].isin(harm.whole))
    assert dataset.pixels(whole, 8).shape == (len(harm.whole), 3, 8, 8)
    (root / "broken.txt").write_text("# found by verify\n" + "\n".join([*harm.broken, "photos/ant/gone.jpg"]) + "\n")
    clean = Small(root)
    assert len(clean.table) == len(dataset.table) - 2, "the empty one is left out without being named"
    assert not set(harm.broken) & set(clean.table["key"])
    kinds = [(one.kind, one.path) for one in clean.findings if one.kind in ("broken", "stale_entry", "missing_image")]
    assert kinds == [*(("broken", key) for key in harm.broken), ("stale_entry", "photos/ant/gone.jpg")]
    assert clean.data_hash != dataset.data_hash
    clean.pixels(np.arange(len(clean.table)), 8)


def test_checking_names_every_broken_image_with_its_reason(root: Path, tmp_path: Path) -> None:
    harm = damage(root, "photos/ant", tmp_path / "outside")
    dataset = Small(root)
    answers = {dataset.table["key"].iloc[one.row]: one for one in image_workers.check_images(dataset.paths())}
    assert len(answers) == len(dataset.table)
    reasons = {key.rpartition("/")[2]: one.reason for key, one in answers.items() if one.reason}
    (empty,) = (one for one in dataset.findings if one.kind == "empty_file")
    assert str(empty) == "photos/ant/zero.jpg: the file is empty"
    assert {*reasons, "zero.jpg"} == {key.rpartition("/")[2] for key in harm.broken}
    assert reasons["page.jpg"] == "not an image that Pillow can read"
    assert "truncated" in reasons["truncated.jpg"].lower()
    assert len({one.sha256 for one in answers.values()}) == len(answers)


# --- pixels and their cache -------------------------------------------------------------------------------------------


def test_pixels_are_the_central_square_in_rgb(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (30, 50, 3), dtype=np.uint8))
    file = tmp_path / "x.png"
    image.save(file)
    expected = np.asarray(image.resize((26, 16), Image.Resampling.BICUBIC).crop((5, 0, 21, 16))).transpose(2, 0, 1)
    assert np.array_equal(decoding.decode(file.read_bytes(), 16), expected)
    assert np.array_equal(decoding.decode(file.read_bytes()), np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA", "I;16"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new(mode, (4, 4)).save(file)
    pixels = decoding.decode(file.read_bytes(), 4)
    assert pixels.shape == (3, 4, 4)
    assert pixels.dtype == np.uint8
    if mode in ("RGBA", "LA"):
        assert (pixels == 255).all(), "transparent is white"


def test_sixteen_bit_grey_keeps_its_shades(tmp_path: Path) -> None:
    shades = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(shades).save(tmp_path / "x.png")
    pixels = decoding.decode((tmp_path / "x.png").read_bytes())
    assert np.array_equal(pixels, np.stack([shades // 256] * 3))


def test_exif_orientation_is_applied_unless_as_stored_and_the_first_frame_counts(tmp_path: Path) -> None:
    turned, frames = Image.Exif(), [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    turned[274] = 6
    Image.new("RGB", (9, 5)).save(tmp_path / "x.jpg", exif=turned)
    assert decoding.decode((tmp_path / "x.jpg").read_bytes()).shape == (3, 9, 5)
    assert decoding.upright((tmp_path / "x.jpg").read_bytes(), turn=False)[0].size == (9, 5)
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert decoding.decode((tmp_path / "x.webp").read_bytes())[:, 0, 0].tolist() == [255, 0, 0]


def test_no_program_is_run_on_a_postscript_file() -> None:
    with pytest.raises(decoding.ImageError, match="a PostScript file, not an image"):
        decoding.decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")


def test_decoded_once_and_kept_across_processes_and_copies(root: Path, tmp_path: Path) -> None:
    first = Small(root)
    rows = np.array([5, 0, 5, 11])
    pixels = first.pixels(rows, 8)
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels[0], pixels[2])
    assert (pixels >= 0).all() and (pixels <= 1).all()
    expected = decoding.decode(Path(first.paths(np.array([11]))[0]).read_bytes(), 8)
    assert torch.equal((pixels[3] * 255).round().to(torch.uint8), torch.from_numpy(expected))
    assert (first.image_cache(8).decoded, first.image_cache(8).filled()) == (3, 3)
    again = Small(root)
    assert torch.equal(again.pixels(rows, 8), pixels)
    assert again.image_cache(8).decoded == 0, "nothing is decoded twice"
    again.pixels(np.arange(12), 8)
    assert again.image_cache(8).decoded == 9, "it goes on where it stopped"
    assert again.image_cache(6).filled() == 0, "another size is another cache"


def test_a_changed_file_is_decoded_again(root: Path) -> None:
    dataset = Small(root)
    dataset.pixels(np.arange(24), 8)
    file = root / str(dataset.table["path"].iloc[3])
    data = bytearray(file.read_bytes())
    replaced = image_bytes("photos/other/9.jpg", (10, 8))
    file.write_bytes(replaced + b"\0" * max(0, len(data) - len(replaced)))
    os.utime(file, ns=(1, 1))
    changed = Small(root)
    pixels = changed.pixels(np.array([3]), 8)
    assert torch.equal((pixels[0] * 255).round().to(torch.uint8), torch.from_numpy(decoding.decode(replaced, 8)))


def test_a_slot_that_was_not_written_whole_is_filled_anew(root: Path) -> None:
    dataset = Small(root)
    pixels = dataset.pixels(np.arange(24), 8)
    folder = dataset.image_cache(8).folder
    assert folder is not None
    with (folder / "pixels.u8").open("r+b") as file:
        file.seek(7 * dataset.image_cache(8).slot_bytes)
        file.write(b"\0" * 40)
    again = Small(root)
    assert torch.equal(again.pixels(np.arange(24), 8), pixels)
    assert again.image_cache(8).decoded == 1


def test_worker_processes_give_the_same_pixels(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Small(root).pixels(np.arange(24), 8)
    monkeypatch.setenv("UCDR_BENCH_WORKERS", "2")
    monkeypatch.setenv("UCDR_BENCH_CACHE", "off")
    without = Small(root)
    assert torch.equal(without.pixels(np.arange(24), 8), alone), "through worker processes, without a cache"
    monkeypatch.setenv("UCDR_BENCH_CACHE", str(root.parent / "cache2"))
    kept = Small(root)
    assert torch.equal(kept.pixels(np.arange(24), 8), alone)
    assert kept.image_cache(8).filled() == 24
    (root / "photos/ant/0000.jpg").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"photos/ant/0000\.jpg is broken: not an image that Pillow can read"):
        Small(root).pixels(np.arange(24), 8)
    assert sum(bool(one.reason) for one in image_workers.check_images(Small(root).paths())) == 1


def test_no_room_means_no_cache_and_one_warning(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "SPARE", 1 << 60)
    dataset = Small(root)
    with pytest.warns(RuntimeWarning, match="has no room for more images"):
        first = dataset.pixels(np.arange(4), 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(dataset.pixels(np.arange(4), 8), first)
    assert dataset.image_cache(8).filled() == 0


def test_a_disk_that_fills_up_ends_the_cache_and_not_the_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes, offset: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_workers, "_write", full)
    dataset = Small(root)
    with pytest.warns(RuntimeWarning, match=r"image cache .* cannot be written \(No space left on device\)"):
        pixels = dataset.pixels(np.arange(24), 8)
    assert dataset.image_cache(8).folder is None
    monkeypatch.setenv("UCDR_BENCH_CACHE", "off")
    assert torch.equal(Small(root).pixels(np.arange(24), 8), pixels)


def test_without_a_home_folder_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCDR_BENCH_CACHE", "~nobody-of-that-name/cache")
    with pytest.warns(
        RuntimeWarning, match="home folder of ~nobody-of-that-name/cache is not known; set UCDR_BENCH_CA"
    ):
        assert image_cache.cache_folder() is None


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks here")
def test_a_worker_that_starts_does_not_see_the_interrupt(request: pytest.FixtureRequest) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    blocked = "import signal; raise SystemExit(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with pytest.raises(KeyboardInterrupt), image_workers._interrupts_wait():  # the caller sees it, afterwards
        assert subprocess.run([sys.executable, "-c", blocked], check=False).returncode == 1
        signal.raise_signal(signal.SIGINT)
    assert subprocess.run([sys.executable, "-c", blocked], check=False).returncode == 0


def test_a_cache_folder_that_cannot_be_written_is_done_without(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "file").write_text("")
    monkeypatch.setenv("UCDR_BENCH_CACHE", str(root / "file"))
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        assert Small(root).pixels(np.arange(2), 8).shape == (2, 3, 8, 8)


def test_a_killed_fill_leaves_only_whole_images(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Small(root)
    real, done = image_workers._work, []

    def dies(job: image_workers.Job) -> image_workers.JobResult:
        if done:
            raise KeyboardInterrupt
        done.append(job)
        return real(job)

    monkeypatch.setattr(image_workers, "CHUNK", 5)
    monkeypatch.setattr(image_workers, "_work", dies)
    with pytest.raises(KeyboardInterrupt):
        dataset.pixels(np.arange(24), 8)
    monkeypatch.setattr(image_workers, "_work", real)
    again = Small(root)
    assert again.image_cache(8).filled() == 5
    monkeypatch.setenv("UCDR_BENCH_CACHE", "off")
    assert torch.equal(again.pixels(np.arange(24), 8), Small(root).pixels(np.arange(24), 8))


# --- rules ------------------------------------------------------------------------------------------------------------


def test_class_splits_follow_seed_and_names_alone() -> None:
    names = [f"c{number}" for number in range(20)]
    splits = class_splits(names)
    assert splits == class_splits(reversed(names))
    assert [list(splits.values()).count(split) for split in ("train", "val", "test")] == [12, 3, 5]
    assert class_splits(names, seed=1) != splits
    assert sorted(class_splits(["a", "b", "c"]).values()) == ["test", "train", "val"]
    with pytest.raises(DatasetError, match="need at least three classes; there are 2"):
        class_splits(["a", "b"])


def test_held_back_takes_a_twelfth_of_the_gallery_and_never_all() -> None:
    counts = {"a": 1, "b": 2, "c": 13, "d": 100}
    rows = [
        {"key": f"{domain}/{name}/{number}", "class": name, "domain": domain}
        for domain in ("g", "h")
        for name, count in counts.items()
        for number in range(count)
    ]
    frame = pd.DataFrame(rows)
    chosen = held_back(frame, ["a", "b", "c"], "g")
    assert frame[chosen].groupby(["domain", "class"]).size().to_dict() == {("g", "b"): 1, ("g", "c"): 2}
    shuffled = frame.sample(frac=1, random_state=0).reset_index(drop=True)
    assert set(shuffled[held_back(shuffled, ["a", "b", "c"], "g")]["key"]) == set(frame[chosen]["key"])
