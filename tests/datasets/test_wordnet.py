"""The embedded WordNet nouns: NLTK finds and reads them offline, and the archive is what its builder makes."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from benchmarks.datasets.build import wordnet_build
from benchmarks.datasets.wordnet import NLTK_DATA, _is_private

ROOT = Path(__file__).parents[2]
ARCHIVE = NLTK_DATA / "corpora" / "wordnet.zip"

USE = """
bicycle = wordnet.synsets("bicycle")[0]
assert bicycle.name() == "bicycle.n.01"
assert bicycle.lexname() == "noun.artifact"
assert [s.name() for s in bicycle.hypernyms()] == ["wheeled_vehicle.n.01"]
assert bicycle.lemma_names() == ["bicycle", "bike", "wheel", "cycle"]
assert bicycle.lemmas()[0].count() > 0
assert [s.name() for s in bicycle.closure(lambda s: s.hypernyms())][-1] == "entity.n.01"
assert "mountain_bike.n.01" in [s.name() for s in bicycle.hyponyms()]
assert wordnet.synset_from_pos_and_offset("n", 2834778) == bicycle
assert wordnet.synset_from_pos_and_offset("n", 2084071) == wordnet.synset("dog.n.01")
assert wordnet.synset("dog.n.01").path_similarity(wordnet.synset("cat.n.01")) == 0.2
assert wordnet.synset("dog.n.01").lowest_common_hypernyms(wordnet.synset("cat.n.01"))[0].name() == "carnivore.n.01"
assert wordnet.morphy("geese") == "goose" and wordnet.morphy("bicycles", wordnet.NOUN) == "bicycle"
assert wordnet.synsets("run", wordnet.VERB) == [] and wordnet.morphy("running", wordnet.VERB) is None
assert wordnet.synset("tree.n.01").instance_hyponyms() == []
assert wordnet.synset("chicago.n.01").instance_hypernyms()
assert bicycle.lemmas()[0].derivationally_related_forms()[0].name() == "bicyclist"
assert wordnet.langs() == ["eng"] and wordnet.get_version() == "3.0"
"""


def run_python(code, tmp_path, python=sys.executable, **environment):
    """Run code in a fresh interpreter with an empty home, an empty NLTK_DATA, and warnings as errors."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    env = {**kept, "HOME": str(home), "USERPROFILE": str(home), "NLTK_DATA": "", **environment}
    command = [str(python), "-W", "error::UserWarning:nltk", "-c", code]
    done = subprocess.run(command, env=env, cwd=environment.get("PYTHONPATH", home), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


#: In a checkout that others may write to (umask 002), a private copy is offered instead of the folder itself.
in_place = pytest.mark.skipif(not _is_private(NLTK_DATA), reason="others may write to this checkout")


@in_place
@pytest.mark.parametrize("first", ["benchmarks", "nltk"])
def test_nltk_reads_it_offline(first, tmp_path):
    imports = "import nltk.data\nimport benchmarks\n" if first == "nltk" else "import benchmarks\n"
    code = imports + "from nltk.corpus import wordnet\n" + USE + "print(wordnet.root)"
    printed = run_python(code, tmp_path, PYTHONPATH=str(ROOT))
    installed = Path(sys.prefix) / "share" / "nltk_data" / "corpora" / ARCHIVE.name  # NLTK imported first may take it
    assert str(ARCHIVE) in printed or (first == "nltk" and str(installed) in printed)


@pytest.mark.slow
def test_every_noun_and_every_pointer_can_be_followed(tmp_path):
    code = """
import benchmarks
from nltk.corpus import wordnet
nouns = list(wordnet.all_synsets())
assert len(nouns) == 82115 and all(s.pos() == "n" for s in nouns)
roots = [s.name() for s in nouns if not s.hypernyms() + s.instance_hypernyms()]
assert roots == ["entity.n.01"], roots
for synset in nouns:
    assert None not in [t for symbol in synset._pointers for t in synset._related(symbol)]
    for lemma in synset.lemmas():
        assert None not in lemma.derivationally_related_forms() + lemma.antonyms()
"""
    run_python(code, tmp_path, PYTHONPATH=str(ROOT))


@in_place
def test_importing_benchmarks_leaves_nltk_and_other_folders_alone(tmp_path):
    code = "import sys, os, benchmarks\nassert 'nltk' not in sys.modules\nprint(os.environ['NLTK_DATA'])"
    other = os.pathsep.join(["/some/folder", "/another"])
    printed = run_python(code, tmp_path, PYTHONPATH=str(ROOT), NLTK_DATA=other).strip()
    assert printed == os.pathsep.join([str(NLTK_DATA), other])
    nested = "import subprocess, sys, benchmarks\n" + f"subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    printed = run_python(nested, tmp_path, PYTHONPATH=str(ROOT), NLTK_DATA=other).strip()
    assert printed == os.pathsep.join([str(NLTK_DATA), other])


def test_archive_is_as_its_readme_says():
    assert ARCHIVE.stat().st_size <= 6_000_000
    listed = dict(
        re.findall(r"^\| `(wordnet/\S+)` \| `([0-9a-f]{64})` \|$", (NLTK_DATA / "README.md").read_text(), re.M)
    )
    with zipfile.ZipFile(ARCHIVE) as archive:
        entries = archive.infolist()
        assert {e.filename: hashlib.sha256(archive.read(e)).hexdigest() for e in entries if e.file_size} == listed
        assert "WordNet 3.0 Copyright 2006 by Princeton University" in archive.read("wordnet/LICENSE").decode()
    assert [e.filename for e in entries] == sorted(e.filename for e in entries)
    assert {e.date_time for e in entries} == {wordnet_build.DATE}
    assert len(wordnet_build.LEXICOGRAPHER_FILES) == 45


def test_rebuilding_from_its_own_content_changes_nothing(tmp_path, capsys):
    with zipfile.ZipFile(ARCHIVE) as archive:
        content = {Path(e.filename).name: archive.read(e) for e in archive.infolist()}
    for name in ("data.noun", "index.noun", "noun.exc", "cntlist.rev"):
        (tmp_path / name).write_bytes(content[name])
    out = tmp_path / "new" / "wordnet.zip"
    assert wordnet_build.main([str(tmp_path), "--out", str(out)]) == 0
    with zipfile.ZipFile(out) as archive:
        assert {Path(e.filename).name: archive.read(e) for e in archive.infolist()} == content
    again = tmp_path / "again.zip"
    wordnet_build.main([str(tmp_path), "--out", str(again)])
    assert again.read_bytes() == out.read_bytes()


HEADER = b"  1 Licence  \n  2 WordNet 3.0 Copyright 2006 by Princeton University.  \n"


def small_source(folder, pointers=b"003 + 00000099 v 0101 ~ %s n 0000 ;c 00000042 a 0000"):
    """Two nouns, the first with pointers to a verb, the second noun and an adjective."""
    one = len(HEADER)
    lines = [b"%08d 03 n 02 entity 0 being 1 ", b"%08d 06 n 01 thing 0 001 @ %08d n 0000 | a thing | \n"]
    first = lines[0] % one
    second_at = b"%08d" % (one + len(first) + len(pointers.replace(b"%s", b"00000000")) + len(b" | that which is  \n"))
    first += pointers.replace(b"%s", second_at) + b" | that which is  \n"
    (folder / "data.noun").write_bytes(HEADER + first + lines[1] % (one + len(first), one))
    index = b"entity n 1 1 ~ 1 0 %08d  \nthing n 1 1 @ 1 0 %s  \n" % (one, second_at)
    (folder / "index.noun").write_bytes(HEADER + index)
    (folder / "noun.exc").write_bytes(b"geese goose\n")
    (folder / "cntlist.rev").write_bytes(b"be%2:42:00:: 1 9\nthing%1:06:00:: 1 3\n")
    return first, second_at


def test_pointers_to_other_parts_of_speech_go_and_offsets_stay(tmp_path):
    first, second_at = small_source(tmp_path)
    files = wordnet_build.build(tmp_path)
    line = files["data.noun"][len(HEADER) :].splitlines(keepends=True)[0]
    assert len(line) == len(first)
    assert line.split(b"|")[0].split() == [*first.split()[:8], b"001", b"~", second_at, b"n", b"0000"]
    assert line.split(b"|")[1].strip() == b"that which is"
    assert files["cntlist.rev"] == b"thing%1:06:00:: 1 3\n"
    assert files["data.verb"] == files["index.adj"] == HEADER
    assert files["LICENSE"].splitlines()[0] == b"Licence"


def test_builder_refuses_what_is_not_wordnet(tmp_path, capsys):
    with pytest.raises(SystemExit):
        wordnet_build.main([str(tmp_path)])
    assert "data.noun does not exist; give the folder usr/share/wordnet" in capsys.readouterr().err
    small_source(tmp_path)
    good = (tmp_path / "data.noun").read_bytes()
    for broken, message in [
        (good.replace(b"WordNet 3.0", b"WordNet 3.1"), "does not hold WordNet 3.0"),
        (good.replace(b"entity", b"entities"), "calls itself"),
        (good.replace(b"001 @", b"002 @"), "announces 002 pointers"),
        (good.replace(b"001 @ 0000", b"001 @ 0001"), "where data.noun has no line"),
    ]:
        (tmp_path / "data.noun").write_bytes(broken)
        with pytest.raises(ValueError, match=message):
            wordnet_build.build(tmp_path)


def test_installed_where_nltk_looks():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    files = project["tool"]["setuptools"]["data-files"]["share/nltk_data/corpora"]
    assert [ROOT / name for name in files] == [ARCHIVE]


@pytest.mark.network
@pytest.mark.parametrize("editable", [False, True])
def test_plain_nltk_finds_it_after_an_install(editable, tmp_path):
    """In a new environment that borrows the packages of this one; pip fetches the build backend."""
    source = tmp_path / "source"
    source.mkdir()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, tracked):
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    (Path(site) / "borrowed.pth").write_text(libraries)
    install = [python, "-m", "pip", "install", "-q", "--no-deps", *(["-e"] if editable else []), str(source)]
    subprocess.run(install, check=True, capture_output=True)
    printed = run_python("from nltk.corpus import wordnet\n" + USE + "print(wordnet.root)", tmp_path, python)
    assert str(tmp_path / "venv" / "share" / "nltk_data") in printed


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_files_that_others_may_write_to_are_offered_as_a_private_copy(tmp_path: Path) -> None:
    """As in a checkout made under umask 002: NLTK refuses to read from such a folder."""
    shared = tmp_path / "shared"
    shutil.copytree(NLTK_DATA, shared)
    for path in (shared, *shared.rglob("*")):
        path.chmod(path.stat().st_mode | 0o020)
    code = (
        "import os\nfrom pathlib import Path\nimport benchmarks.datasets.wordnet as ours\n"
        f"ours.NLTK_DATA = Path({str(shared)!r})\nos.environ['NLTK_DATA'] = ''\nours.offer_to_nltk()\n"
        "from nltk.corpus import wordnet\n"
        "wordnet.synset('dog.n.01').hypernyms()\nprint(os.environ['NLTK_DATA'])"
    )
    offered = Path(run_python(code, tmp_path, PYTHONPATH=str(ROOT)).strip())
    assert offered.name.startswith("ucdr-bench-nltk-")
    assert not offered.exists(), "removed at the end"
