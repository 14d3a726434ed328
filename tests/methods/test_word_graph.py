"""Class graphs from WordNet, and propagation on them."""

import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nltk
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.corpus.util import LazyCorpusLoader
from torch import Tensor

import benchmarks  # brings WordNet's nouns
from methods.parts.senses import WordNetError, choose_senses, doubtful, wordnet
from methods.parts.word_graph import (
    WordGraph,
    build_graph,
    extend_graph,
    find_synset,
    receptive_field,
    row_normalised,
)

NAMES = ("cat", "hot_air_balloon", "dog", "sea turtle", "violin", "qwertyuiop")
SYNSETS = {"hot_air_balloon": "hot-air_balloon.n.01", "sea turtle": "sea_turtle.n.01"}


def dense(edges: Tensor, nodes: int) -> Tensor:
    """The row-normalised matrix, written out."""
    counts = torch.eye(nodes)
    for parent, child in edges.tolist():
        counts[parent, child] += 1
        counts[child, parent] += 1
    return counts.T / counts.T.sum(dim=1, keepdim=True)


def as_sets(graph: WordGraph) -> tuple[set[tuple[str, frozenset[str]]], set[tuple[str, str]]]:
    """Nodes and edges by name, whatever the order."""
    keys = [synset or words[0] for synset, words in zip(graph.synsets, graph.words, strict=True)]
    nodes = {(key, frozenset(words)) for key, words in zip(keys, graph.words, strict=True)}
    return nodes, {(keys[parent], keys[child]) for parent, child in graph.edges.tolist()}


# --- the graph -------------------------------------------------------------------------------------------------------


def test_nodes_are_the_classes_and_all_their_ancestors() -> None:
    graph = build_graph(NAMES, SYNSETS)
    assert graph.classes == len(NAMES)
    found = [find_synset(name, SYNSETS.get(name, "")) for name in NAMES]
    above = {s.name() for synset in found if synset for path in synset.hypernym_paths() for s in path}
    assert list(graph.synsets[len(NAMES) :]) == sorted(above - {s.name() for s in found if s})
    node = {key: number for number, key in enumerate(graph.synsets)}
    expected = {
        (node[parent.name()], node[key]) for key in graph.synsets if key for parent in find_synset("", key).hypernyms()
    }
    assert {tuple(edge) for edge in graph.edges.tolist()} == expected
    assert graph.words[0][:2] == ("cat", "true cat")
    assert graph.words[1] == ("hot air balloon", "hot-air balloon")


def test_a_class_without_a_synset_is_alone() -> None:
    graph = build_graph(NAMES, SYNSETS)
    lone = NAMES.index("qwertyuiop")
    assert graph.synsets[lone] == ""
    assert graph.words[lone] == ("qwertyuiop",)
    assert not (graph.edges == lone).any()
    assert dense(graph.edges, graph.nodes)[lone].nonzero().flatten().tolist() == [lone]


def test_the_named_synset_goes_before_the_commonest_sense() -> None:
    assert find_synset("bat").name() == "bat.n.01"
    assert find_synset("bat", "bat.n.05").name() == "bat.n.05"
    assert build_graph(["bat"], {"bat": "bat.n.05"}).synsets[0] == "bat.n.05"


@pytest.mark.parametrize("name", ["alarm clock", "alarm_clock", "Alarm_Clock", "alarm-clock", "see-saw"])
def test_spellings(name: str) -> None:
    assert find_synset(name).name() in ("alarm_clock.n.01", "seesaw.n.01")


def test_same_names_same_graph() -> None:
    first, second = build_graph(NAMES, SYNSETS), build_graph(NAMES, SYNSETS)
    assert (first.synsets, first.words) == (second.synsets, second.words)
    assert torch.equal(first.edges, second.edges)


def test_a_class_above_another_is_no_second_node() -> None:
    graph = build_graph(["cat", "animal"])
    assert graph.synsets.count("animal.n.01") == 1
    assert graph.synsets[1] == "animal.n.01"
    parents = [graph.synsets[p] for p, c in graph.edges.tolist() if c == 1]
    children = [graph.synsets[c] for p, c in graph.edges.tolist() if p == 1]
    assert parents == ["organism.n.01"]
    assert children


def test_two_classes_of_one_synset() -> None:
    graph = build_graph(["car", "automobile"])
    assert graph.synsets[:2] == ("car.n.01", "car.n.01")
    parents = [{p for p, c in graph.edges.tolist() if c == row} for row in (0, 1)]
    assert parents[0] == parents[1] != set()


def test_sources() -> None:
    words, none = build_graph(NAMES, SYNSETS), build_graph(NAMES, SYNSETS, source="none")
    assert none.nodes == len(NAMES)
    assert none.edges.shape == (0, 2)
    assert none.words == words.words[: len(NAMES)]
    first, again, other = (build_graph(NAMES, SYNSETS, source="random", seed=seed) for seed in (3, 3, 4))
    assert first.synsets == words.synsets
    assert first.edges.shape == words.edges.shape
    assert torch.equal(first.edges, again.edges)
    assert not torch.equal(first.edges, other.edges)
    assert not torch.equal(first.edges, words.edges)
    assert (first.edges[:, 0] != first.edges[:, 1]).all()
    assert torch.equal(first.edges[:, 1], words.edges[:, 1])
    assert int(first.edges.max()) < first.nodes


def test_unknown_synset_is_named() -> None:
    with pytest.raises(WordNetError, match=r"class 'cat'.*'catt.n.01'"):
        build_graph(["cat"], {"cat": "catt.n.01"})


def test_missing_wordnet_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [])
    absent: Any = LazyCorpusLoader("wordnet", WordNetCorpusReader, None)
    monkeypatch.setattr(nltk.corpus, "wordnet", absent)
    with pytest.raises(WordNetError, match="NLTK_DATA") as error:
        wordnet()
    assert "\n" not in str(error.value)


def test_refused_wordnet_names_the_folder_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """NLTK from 3.10 on reads nothing from a folder that others may write to, e.g. one made under umask 002."""

    class Refused:
        def ensure_loaded(self) -> None:
            raise LookupError(
                "Refused, writable by other accounts\n    - '/data/nltk'\ne.g.:\n    chmod go-w '/data/nltk'\n"
            )

    monkeypatch.setattr(nltk.corpus, "wordnet", Refused())
    with pytest.raises(WordNetError, match="chmod -R go-w '/data/nltk'") as error:
        wordnet()
    assert "\n" not in str(error.value)


# --- one more class --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["horse", "cello", "animal", "kitty", "zxcvbnm"])
def test_extended_graph_is_the_graph_built_with_it(name: str) -> None:
    graph = build_graph(NAMES, SYNSETS)
    extended, row = extend_graph(graph, name)
    assert as_sets(extended) == as_sets(build_graph([*NAMES, name], SYNSETS))
    assert extended.words[row][0] == name
    assert extended.synsets[: graph.nodes] == graph.synsets
    assert all(extended.words[node] == graph.words[node] for node in range(graph.nodes) if node != row)
    assert torch.equal(extended.edges[: len(graph.edges)], graph.edges)


def test_extending_other_sources() -> None:
    none, row = extend_graph(build_graph(NAMES, SYNSETS, source="none"), "horse")
    assert (row, none.nodes, len(none.edges)) == (len(NAMES), len(NAMES) + 1, 0)
    graph = build_graph(NAMES, SYNSETS, source="random", seed=3)
    first, again = extend_graph(graph, "horse"), extend_graph(graph, "horse")
    assert torch.equal(first[0].edges, again[0].edges)
    assert torch.equal(first[0].edges[: len(graph.edges)], graph.edges)
    assert (first[0].edges[len(graph.edges) :, 0] < graph.nodes).all()
    assert (first[0].edges[:, 1] == first[1]).any()


def test_a_second_name_of_a_class() -> None:
    graph = build_graph(["car"])
    extended, row = extend_graph(graph, "automobile")
    assert row == graph.nodes
    assert {p for p, c in extended.edges.tolist() if c == row} == {p for p, c in graph.edges.tolist() if c == 0}


# --- propagation -----------------------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Tensor, int, list[int]]:
    nodes = draw(st.integers(1, 9))
    pairs = draw(st.lists(st.tuples(st.integers(0, nodes - 1), st.integers(0, nodes - 1)), max_size=14))
    edges = [pair for pair in pairs if pair[0] != pair[1]]
    rows = draw(st.lists(st.integers(0, nodes - 1), min_size=1, max_size=nodes, unique=True))
    return torch.tensor(edges, dtype=torch.int64).view(-1, 2), nodes, rows


@settings(deadline=None, max_examples=60)
@given(graphs())
def test_row_normalised_is_the_written_out_matrix(graph: tuple[Tensor, int, list[int]]) -> None:
    edges, nodes, _ = graph
    messages, weights = row_normalised(edges, nodes)
    matrix = torch.zeros(nodes, nodes)
    matrix[messages[1], messages[0]] = weights
    torch.testing.assert_close(matrix, dense(edges, nodes))
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(nodes))


@settings(deadline=None, max_examples=60)
@given(graphs())
def test_receptive_field_is_all_that_counts(graph: tuple[Tensor, int, list[int]]) -> None:
    edges, nodes, rows = graph
    field = receptive_field(edges, nodes, rows, layers=2)
    values = torch.randn(nodes, 3, generator=torch.Generator().manual_seed(0))
    matrix = dense(edges, nodes)
    expected = (matrix @ (matrix @ values).relu())[rows]
    hidden = values[field.nodes]
    for layer in (1, 2):
        out = torch.zeros(field.sizes[2 - layer], 3)
        (sender, receiver), count = field.messages, field.counts[2 - layer]
        out.index_add_(0, receiver[:count], hidden[sender[:count]] * field.weights[:count, None])
        hidden = out.relu() if layer == 1 else out
    torch.testing.assert_close(hidden, expected)
    assert field.nodes[: len(rows)].tolist() == rows
    assert list(field.sizes) == sorted(field.sizes)


def test_the_field_leaves_far_nodes_out() -> None:
    chain = torch.tensor(list(itertools.pairwise(range(8))))
    field = receptive_field(chain, 8, [0], layers=2)
    assert field.nodes.tolist() == [0, 1, 2]
    assert field.sizes == (1, 2, 3)
    assert field.counts == (2, 5)


# --- senses ----------------------------------------------------------------------------------------------------------


def chosen(names: list[str]) -> dict[str, str]:
    return {name: "" if one is None else one.name() for name, one in choose_senses(names).items()}


def test_the_other_classes_decide_the_sense() -> None:
    office = ["mouse", "monitor", "computer keyboard", "printer", "laptop", "calculator", "webcam", "scanner"]
    found = chosen(office)
    assert (found["mouse"], found["monitor"]) == ("mouse.n.04", "monitor.n.04")
    assert (found["calculator"], found["printer"]) == ("calculator.n.02", "printer.n.02")
    farm = ["mouse", "cat", "dog", "cow", "seal", "squirrel", "tiger"]
    found = chosen(farm)
    assert (found["mouse"], found["seal"], found["tiger"]) == ("mouse.n.01", "seal.n.09", "tiger.n.02")


@given(st.permutations(["mouse", "monitor", "seal", "cat", "crane", "mug", "plant", "bat"]))
@settings(max_examples=10, deadline=None)
def test_senses_do_not_depend_on_the_order(names: list[str]) -> None:
    assert chosen(names) == chosen(sorted(names))
    assert build_graph(names).synsets[: len(names)] == tuple(chosen(names)[name] for name in names)


def test_a_given_synset_goes_before_the_context_and_is_context() -> None:
    assert choose_senses(["mouse", "cat"], {"mouse": "mouse.n.04"})["mouse"].name() == "mouse.n.04"
    with pytest.raises(WordNetError, match=r"class 'mouse': WordNet has no synset 'mouse.n.77'"):
        choose_senses(["mouse", "cat"], {"mouse": "mouse.n.77"})


@pytest.mark.parametrize(
    ("name", "synset"),
    [
        ("n02084071", "dog.n.01"),
        ("n01440764", "tench.n.01"),
        ("n99999999", ""),
        ("The_Eiffel_Tower", "eiffel_tower.n.01"),
        ("hot_air_balloon", "hot-air_balloon.n.01"),
        ("car_(sedan)", "car.n.01"),
        ("jack o lantern", "jack-o-lantern_fungus.n.01"),
        ("", ""),
        ("17", "seventeen.n.01"),
        ("qwertyuiop", ""),
        ("{}", ""),
    ],
)
def test_names_alone(name: str, synset: str) -> None:
    assert chosen([name])[name] == synset


def test_doubtful_names_are_listed() -> None:
    listed = {one.name: str(one) for one in doubtful(["qwertyuiop", "crane", "dog", "cat", "helicopter", "swan"])}
    assert listed["qwertyuiop"] == "qwertyuiop: WordNet has no such noun"
    assert "dog" not in listed
    assert doubtful(["crane", "swan"], {"crane": "crane.n.05"}) == ()


def test_many_names_take_seconds() -> None:
    names = sorted({name.replace("_", " ") for name in itertools.islice(wordnet().all_lemma_names("n"), 0, 40000, 100)})
    started = time.perf_counter()
    assert len(choose_senses(names)) == len(names) >= 345
    assert time.perf_counter() - started < 10


def test_the_sense_of_a_later_name_is_chosen_among_the_training_classes() -> None:
    graph = build_graph(["laptop", "computer keyboard", "printer", "webcam"])
    extended, row = extend_graph(graph, "mouse")
    assert extended.synsets[row] == "mouse.n.04"
    first, row = extend_graph(build_graph(["laptop", "webcam"], choice="first"), "mouse")
    assert first.synsets[row] == "mouse.n.01"


def test_the_commonest_sense_stays_the_released_choice() -> None:
    names = ["monitor", "mug", "mouse", "car_(sedan)", "The_Eiffel_Tower"]
    found = build_graph(names, choice="first").synsets[: len(names)]
    assert found == ("proctor.n.01", "mug.n.01", "mouse.n.01", "", "")


ANSWER = """
import sys
from methods.parts.senses import undisputed_wordnet, wordnet
early = undisputed_wordnet()
assert "nltk" not in sys.modules
root = wordnet()._root
read = root.zipfile.filename if hasattr(root, "zipfile") else root
assert undisputed_wordnet() is None  # nltk decides from now on
print(early or "", read, sep="|")
"""


@pytest.mark.skipif(os.name != "posix", reason="nltk is always asked there")
@pytest.mark.parametrize(
    ("layout", "early"),
    [
        (("first/wordnet.zip",), True),
        (("first/wordnet.zip", "second/wordnet.zip"), True),
        (("first/wordnet.zip", "second/wordnet/"), False),
        (("first/wordnet.zip", "home/wordnet/"), False),
        (("second/wordnet.zip",), False),
        (("first/wordnet.zip writable", "second/wordnet.zip"), False),
    ],
)
def test_the_path_known_early_is_the_one_nltk_reads(layout: tuple[str, ...], early: bool, tmp_path: Path) -> None:
    shipped = Path(benchmarks.__file__).parent / "assets" / "nltk_data" / "corpora" / "wordnet.zip"
    for where in layout:
        folder, _, name = where.removesuffix(" writable").partition("/")
        corpora = tmp_path / (f"{folder}/nltk_data" if folder == "home" else folder) / "corpora"
        corpora.mkdir(parents=True)
        if name.endswith("/"):
            shutil.unpack_archive(shipped, corpora)
        else:
            shutil.copyfile(shipped, corpora / name)
            (corpora / name).chmod(0o644)
        if where.endswith("writable"):
            corpora.parent.chmod(0o777)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("NLTK", "HOME"))},
        "NLTK_DATA": os.pathsep.join(str(tmp_path / name) for name in ("first", "second")),
        "HOME": str(tmp_path / "home"),
    }
    done = subprocess.run([sys.executable, "-c", ANSWER], env=environment, capture_output=True, text=True, check=True)
    answered, read = done.stdout.strip().split("|")
    assert bool(answered) == early
    assert not answered or Path(answered).resolve() == Path(read).resolve()
