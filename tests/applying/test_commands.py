"""The page docs/apply.md, command by command; loading of weights; the upload against a local stand-in."""

from __future__ import annotations

import base64
import contextlib
import csv
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from benchmarks import load_method, load_results, retrieve
from benchmarks.applying.hub import PushError, push
from benchmarks.store.records import content_key
from benchmarks.store.weights import STEM, WeightsError
from methods.coop import CoOp, CoOpConfig
from methods.parts.backbone import Backbone

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "apply.md").read_text(encoding="utf-8")


def examples() -> dict[str, str]:
    """The marked code blocks of the page by name."""
    return dict(re.findall(r"<!-- (?:example|fitted): ([^\n]+) -->\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL))


def started(command: str, folder: Path) -> str:
    """Run a command of the page in a folder as a user does; returns its output."""
    words = shlex.split(command)
    words = (
        [sys.executable, "-m", "benchmarks.cli", *words[1:]]
        if words[0] == "ucdr-bench"
        else [sys.executable, *words[1:]]
    )
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "UCDR_BENCH_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_of_the_page_runs_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.datasets.picto_domains import PictoDomains

    shown = examples()
    commands = [text for text in shown.values() if not text.startswith("from")]
    assert len(commands) == len(re.findall(r"^```sh$", PAGE, flags=re.MULTILINE)) == 6
    data = PictoDomains()
    rows = np.flatnonzero(data.table["class"].isin(["alarm_clock", "alarm clock", "cat", "dog"]).to_numpy())[:30]
    assert len(rows) > 5
    (tmp_path / "photos").mkdir()
    for row, pixels in zip(rows, data.pixels(rows, 96).numpy(), strict=True):
        Image.fromarray((pixels.transpose(1, 2, 0) * 255).astype(np.uint8)).save(tmp_path / "photos" / f"{row}.png")
    (tmp_path / "photos" / f"{rows[0]}.png").rename(tmp_path / "photos" / "query.png")
    outputs = [started(command.replace("OWNER/NAME", "me/mine"), tmp_path) for command in commands]
    assert "weights: " in outputs[0]
    assert (load_results(tmp_path / "results" / "mine")["weights"] != "").all()
    assert f"{len(rows)} images" in outputs[1]
    with (tmp_path / "photos-coop" / "hits.csv").open() as file:
        hits = list(csv.DictReader(file))
    assert [hit["query"] for hit in hits] == ["photos/query.png"] * 5 + ["alarm clock"] * 5
    assert hits[0]["name"] == "query.png" and float(hits[0]["score"]) == pytest.approx(1, abs=1e-5)
    with Image.open(tmp_path / "hits.png") as sheet:
        assert sheet.width > sheet.height > 200
    with (tmp_path / "photos-coop" / "classes.csv").open() as file:
        classes = list(csv.DictReader(file))
    assert len(classes) == 3 * len(rows)
    table = parquet.read_table(tmp_path / "picto.parquet")
    assert table.column("key").to_pylist() == data.table["key"].tolist()
    assert "method.safetensors" in outputs[-1] and "README.md" in outputs[-1]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(shown["load a fitted method"], "apply.md", "exec"), names)
    method = names["method"]
    assert names["names"] == [hit["name"] for hit in hits[:5]]
    assert torch.equal(
        load_method("results/mine/weights/picto_domains").encode_classes(["cat", "dog"]), names["classes"]
    )
    assert names["classes"].shape == (2, method.backbone.embed_dim)
    pixels = torch.from_numpy(data.pixels(rows[:2], method.backbone.image_size).numpy())
    assert retrieve(method, pixels, pixels, 1)[0].tolist() == [[0], [1]]
    embedded = np.array(table.column("embedding").take(rows[:2]).to_pylist(), np.float32)
    again = method.encode_images(data.processed(rows[:2], method.backbone.processing).float() / 255)
    np.testing.assert_allclose(embedded, again.detach().numpy(), atol=1e-5)


@pytest.fixture
def saved(tiny_backbone: Backbone, tmp_path: Path) -> Path:
    """CoOp with random context, saved with its card."""
    method = CoOp(tiny_backbone, CoOpConfig())
    method.load_tensors({"context": torch.randn(16, tiny_backbone.text_width)}, method.facts())
    method.save(tmp_path / "weights" / STEM, scores=())
    return tmp_path / "weights"


def test_saved_weights_load_from_each_of_their_names(saved: Path, tiny_folder: Path, tiny_backbone: Backbone) -> None:
    expected = CoOp.load(saved / STEM, tiny_backbone).encode_classes(["cat"])
    for path in (saved, saved / STEM, saved / "method.json", saved / "method.safetensors"):
        for backbone in (tiny_folder, tiny_backbone):
            method = load_method(path, backbone)
            assert torch.equal(method.encode_classes(["cat"]), expected)


def test_another_backbone_is_refused_in_one_line(saved: Path, tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"other backbone weights; load \S*tiny-clip with") as caught:
        load_method(saved, "picto-clip")
    assert "\n" not in str(caught.value)
    stated = json.loads((saved / "method.json").read_text())
    (saved / "method.json").write_text(json.dumps(stated | {"backbone_name": "./gone"}))
    with pytest.raises(ValueError, match="--backbone FOLDER"):
        load_method(saved)
    changed = stated | {"identity": stated["identity"] | {"tokenizer_hash": "other"}}
    (saved / "method.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="another tokenizer"):
        load_method(saved, tiny_folder)


@pytest.mark.parametrize("damage", ["no tensors", "cut", "unknown method", "not JSON", "no facts", "nothing"])
def test_damaged_weights_are_one_line(saved: Path, tiny_folder: Path, damage: str) -> None:
    stated = json.loads((saved / "method.json").read_text())
    if damage == "no tensors":
        (saved / "method.safetensors").unlink()
    elif damage == "cut":
        (saved / "method.safetensors").write_bytes((saved / "method.safetensors").read_bytes()[:-4])
    elif damage == "not JSON":
        (saved / "method.json").write_text("{")
    elif damage == "unknown method":
        (saved / "method.json").write_text(json.dumps(stated | {"method": "co-op"}))
    elif damage == "no facts":
        (saved / "method.json").write_text(json.dumps({"method": "coop"}))
    else:
        saved = saved / "elsewhere"
    with pytest.raises(WeightsError) as caught:
        load_method(saved, tiny_folder)
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "named", ["results", "results/weights", "results/weights/tiny", "results/weights/tiny/coop-s0"]
)
@pytest.mark.parametrize("damage", ["not JSON", "no key", "no weights"])
def test_a_damaged_description_of_a_fit_is_named_with_the_fix(
    named: str, damage: str, tmp_path: Path, saved: Path
) -> None:
    (tmp_path / "results" / "cells").mkdir(parents=True)
    folder = tmp_path / "results" / "weights" / "tiny" / "coop-s0"
    folder.parent.mkdir(parents=True)
    saved.rename(folder)
    fit = {
        "schema": 1, "key": content_key({}), "rivals": "", "method": "coop", "dataset": "tiny", "seed": 0,
        "validation": None, "keep": "all", "inputs": {}, "files": {},
    }  # fmt: skip
    if damage == "no weights":
        (folder / "method.json").unlink()
    (folder / "fit.json").write_text(
        {"not JSON": "{", "no key": json.dumps({"schema": 1})}.get(damage, json.dumps(fit))
    )
    with pytest.raises(WeightsError) as caught:
        load_method(tmp_path / named)
    name = "method.json" if damage == "no weights" else "fit.json"
    assert str(caught.value).startswith(f"{folder / name}: "), caught.value
    assert "\n" not in str(caught.value) and "again with --keep-weights best --force" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "IMAGE", "--out", ""], "argument --out: is empty; name one"),
        (["MODEL", ""], "argument IMAGES: is empty; name one"),
        (["", "IMAGE"], "argument MODEL: is empty; name one"),
        (["MODEL", "IMAGE", "--sheet", " "], "argument --sheet: is empty; name one"),
        (["MODEL", "IMAGE", "--out", "TEXT/out"], "--out TEXT/out: cannot be written (TEXT is a file, not a folder)"),
        (["MODEL", "IMAGE", "--parquet", "TEXT/x.parquet"], "--parquet TEXT/x.parquet: cannot be written (TEXT is"),
        (["MODEL", "IMAGE", "--search", "TEXT"], "--search TEXT: not an image that Pillow can read; give an image"),
    ],
)
def test_what_could_only_fail_later_is_refused_first(
    arguments: list[str],
    message: str,
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from benchmarks.apply import main

    text, image = tmp_path / "t.sh", tmp_path / "red.png"
    text.write_text("echo")
    Image.new("RGB", (40, 40), "red").save(image)
    monkeypatch.chdir(tmp_path)

    def filled(line: str) -> str:
        return line.replace("MODEL", str(saved)).replace("TEXT", str(text)).replace("IMAGE", str(image))

    said = message if "argument" in message else filled(message)
    given = [filled(word) for word in arguments]
    with contextlib.suppress(SystemExit):
        assert main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "applied").exists()


def test_commands_refuse_in_one_line(
    saved: Path, tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import apply, embed
    from benchmarks import push as push_command

    model, backbone = [str(saved)], ["--backbone", str(tiny_folder)]
    (tmp_path / "empty").mkdir()
    (tmp_path / "nokeep" / "cells").mkdir(parents=True)
    image = str(tmp_path / "red.png")
    Image.new("RGB", (40, 40), "red").save(image)
    for command, arguments, message in (
        (apply.main, [str(tmp_path / "empty"), "--out", str(tmp_path / "out")], "no weights there"),
        (apply.main, [*model, *backbone, str(tmp_path / "empty")], "no images there"),
        (apply.main, [*model, *backbone, "--out", str(tmp_path / "none")], "give IMAGES"),
        (apply.main, [*model, "--top", "0"], "--top 0"),
        (apply.main, [str(tmp_path / "nowhere"), image], "nowhere: no such file or folder"),
        (apply.main, [str(tmp_path / "cells" / "gone.json"), image], "gone.json: no such file or folder"),
        (
            apply.main,
            [str(tmp_path / "nokeep"), image],
            "run its command again with --keep-weights best --force",
        ),
        (apply.main, [*model, "--classify", "cat"], "two or more"),
        (apply.main, [*model, "--classify", ""], "two or more"),
        (apply.main, [*model, "--text", " "], "--text: is empty"),
        (apply.main, [*model, image, "--search", str(tmp_path / "q.png")], "q.png: no such file"),
        (apply.main, [*model, image, "--search", str(tmp_path / "empty")], "a folder, not an image"),
        (apply.main, [*model, "--text", "cat", "--sheet", "hits.pdf"], "its ending must be .png"),
        (apply.main, [*model, "--parquet", str(tmp_path / "empty")], "a folder; give the file"),
        (apply.main, [*model, image, "--out", str(saved / "method.json")], "a file; give a folder"),
        (embed.main, ["picto_domains", "--out", "x.csv"], ".parquet or .npy"),
        (embed.main, ["picto", "--out", "x.npy"], "picto_domains"),
        (
            embed.main,
            ["picto_domains", "--out", "x.npy", "--data-root", "/nope2"],
            "--data-root /nope2 is not a folder",
        ),
        (embed.main, ["picto_domains", "--out", "x.npy", "--backbone", "./nowhere"], "does not exist"),
        (push_command.main, [str(tmp_path / "empty"), "me/mine"], "no weights there"),
        (push_command.main, [*model, "not/a/name", "--dry-run"], "write OWNER/NAME"),
    ):
        assert command(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_a_misspelt_option_is_answered_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import apply, data

    for main, arguments, hint in (
        (apply.main, ["model", "photos", "--serach", "x.png"], "did you mean --search?"),
        (apply.main, ["model", "--serach=x.png", "--texd", "cat"], "did you mean --search and --text?"),
        (apply.main, ["model", "--zzzzzz"], "--zzzzzz (--help"),
        (data.main, ["verify", "folder", "--rot", "x"], "did you mean --root?"),
        (apply.main, [], "required: MODEL (--help"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        error = capsys.readouterr().err
        assert caught.value.code == 2 and hint in error and error.count("\n") == 1, error


def test_names_stay_in_their_line_and_text_queries_are_on_the_sheet(
    saved: Path, tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.apply import main

    (tmp_path / "photos").mkdir()
    for number, name in enumerate(("new\nline.png", "été.png")):
        Image.new("RGB", (40, 40), (0, 100 * number, 0)).save(tmp_path / "photos" / name)
    arguments = [str(saved), str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--backbone", str(tiny_folder)]
    assert main([*arguments, "--text", "a cat", "--classify", "cat,dog", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.count(r"new\nline.png") == 2 and "2 images, " in out and "\nline" not in out
    with Image.open(tmp_path / "out" / "hits.png") as sheet:
        square = sheet.convert("RGB").crop((8, 8, 152, 152))
    assert len(square.getcolors(10**6) or []) > 2  # not a bare grey square


def test_letters_with_accents_have_shapes_of_their_own() -> None:
    from benchmarks.applying.contact_sheet import _font

    shapes = {letter: bytes(_font(11).getmask(letter)) for letter in "eéèоßλ\uffff"}  # the last one has no shape
    assert len(set(shapes.values())) == len(shapes)


def test_broken_images_are_named_and_the_exit_code_says_so(
    saved: Path, tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.apply import main

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "photos" / "red.png")
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no")
    arguments = [str(saved), str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--backbone", str(tiny_folder)]
    for _ in range(2):
        assert main([*arguments, "--device", "cpu"]) == 1
        out, err = capsys.readouterr()
        assert "1 image, " in out and "left out: bad.jpg: not an image" in err
    other = [str(saved), "--out", str(tmp_path / "out"), "--backbone", str(tiny_folder), "--text", "a cat"]
    method = json.loads((saved / "method.json").read_text())
    (saved / "method.json").write_text(json.dumps(method))  # other bytes: other weights
    assert main(other) == 2
    assert "embedded with other weights" in capsys.readouterr().err


# --- upload -----------------------------------------------------------------------------------------------------------


class _Hub(BaseHTTPRequestHandler):
    """A stand-in for the hub's addresses that an upload calls; keeps what arrives."""

    files: dict[str, bytes]
    repositories: list[dict[str, Any]]
    refuse = 0

    def log_message(self, *values: Any) -> None: ...

    def _answer(self, value: Any, code: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        known = {"id": "me/mine", "sha": "0" * 40, "siblings": []}
        self._answer({"error": "refused"} if self.refuse else known, self.refuse or 200)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.refuse:
            self._answer({"error": "refused"}, self.refuse)
        elif self.path.endswith("/repos/create"):
            self.repositories.append(json.loads(body))
            self._answer({"url": f"http://{self.headers['Host']}/me/mine", "name": "me/mine"})
        elif "/preupload/" in self.path:
            wanted = json.loads(body)["files"]
            kinds = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in wanted]
            self._answer({"files": kinds})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/me/mine/commit/{'0' * 40}"
            self._answer({"commitUrl": url, "commitOid": "0" * 40, "success": True, "pullRequestUrl": None})
        else:
            self._answer({"validations": [], "warnings": [], "errors": []})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[_Hub]]]:
    kind = type("Hub", (_Hub,), {"files": {}, "repositories": [], "refuse": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield f"http://127.0.0.1:{server.server_port}", kind
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_upload_is_one_commit_of_what_loads_again(
    hub: tuple[str, type[_Hub]], saved: Path, tmp_path: Path, tiny_backbone: Backbone
) -> None:
    endpoint, kind = hub
    assert push(saved, "me/mine", private=True, endpoint=endpoint).endswith("/me/mine")
    assert kind.repositories[0]["name"] == "mine"
    assert kind.repositories[0].get("private", kind.repositories[0].get("visibility")) in (True, "private")
    assert set(kind.files) == {"README.md", "method.json", "method.safetensors"}
    for name, data in kind.files.items():
        assert data == (saved / name).read_bytes()
        (tmp_path / "copy").mkdir(exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    assert kind.files["README.md"].startswith(b'---\nlibrary_name: "ucdr-bench"')
    assert load_method(tmp_path / "copy", tiny_backbone).card.name == "coop"


def test_a_refused_upload_is_one_line(hub: tuple[str, type[_Hub]], saved: Path) -> None:
    endpoint, kind = hub
    kind.refuse = 403
    with pytest.raises(PushError, match=r"answered 403.*hf auth login") as caught:
        push(saved, "me/mine", endpoint=endpoint)
    assert "\n" not in str(caught.value) and not kind.files
    with pytest.raises(PushError, match="not a repository"):
        push(saved, "not/a/name", endpoint=endpoint)
