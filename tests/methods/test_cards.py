"""Cards: read from TOML, checked on load, without torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from methods.cards import FOLDER, CardError, Deviation, MethodCard, read_card
from methods.registry import METHODS

CARD = """\
name = "mine"
title = "Mine"
authors = "Me"
venue = "-"
year = 2026
url = ""
trains = "a vector"

[extensions]
"uda/retrieval" = "images alone"

[[deviations]]
topic = "order"
paper = "random"
released = "sorted"
switch = "order"
"""


def written(folder: Path, text: str) -> Path:
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    return folder


def test_a_card_is_read_with_all_its_parts(tmp_path: Path) -> None:
    card = read_card("mine", written(tmp_path, CARD))
    assert card == MethodCard(
        name="mine",
        title="Mine",
        authors="Me",
        venue="-",
        year=2026,
        url="",
        trains="a vector",
        extensions={"uda/retrieval": "images alone"},
        deviations=(Deviation("order", "random", "sorted", "order"),),
    )
    assert card.extension("uda_inductive", "retrieval") == "images alone"
    assert card.extension("uda", "classification") == ""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trains =", "train =", "mine.toml: the card has the unknown key 'train'; did you mean trains?"),
        ('[extensions]\n"uda', '[xyz]\n"uda', "the card has the unknown key 'xyz'; the keys are name, title,"),
        ('title = "Mine"\n', "", "mine.toml: the card has no title; add a line title = ..."),
        ("year = 2026", 'year = "2026"', "mine.toml: the card has year = '2026'; write a whole number"),
        ("year = 2026", "year = true", "mine.toml: the card has year = True; write a whole number"),
        ('"Mine"', "3", "mine.toml: the card has title = 3; write a text"),
        ("year =", 'similarity = "dot"\nyear =', "similarity = 'dot'; write one of cosine, sqeuclidean"),
        ("year =", "floor = 1\nyear =", "mine.toml: the card has floor = 1; write true or false"),
        ('"images alone"', "1", "mine.toml: the card has extensions = {'uda/retrieval': 1}; write a table of texts"),
        ("[[deviations]]", "[deviations]", "write one [[deviations]] table for each"),
        ('paper = "random"', "", "mine.toml: deviation 1 has no paper; add a line paper = ..."),
        ("released = ", "relased = ", "mine.toml: deviation 1 has the unknown key 'relased'; did you mean released?"),
        ('switch = "order"', "switch = 1", "mine.toml: deviation 1 has switch = 1; write a text"),
        ('name = "mine"', 'name = "yours"', "mine.toml: name is 'yours'; write 'mine', or rename the file"),
        ('name = "mine"', "name = mine", "mine.toml: is not TOML: "),
    ],
)
def test_a_wrong_card_is_refused_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in CARD
    with pytest.raises(CardError) as caught:
        read_card("mine", written(tmp_path, CARD.replace(old, new, 1)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_repeated_deviation_is_refused(tmp_path: Path) -> None:
    again = CARD + '[[deviations]]\ntopic = "order"\npaper = "a"\nreleased = "b"\n'
    with pytest.raises(CardError, match=r"mine\.toml: deviation 2 repeats the topic 'order'; remove one of them"):
        read_card("mine", written(tmp_path, again))


def test_a_missing_card_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"mine\.toml: cannot be read \(No such file or directory\); write the card"):
        read_card("mine", tmp_path)


def test_every_card_belongs_to_a_method_and_every_method_reads_its_card() -> None:
    own = {entry.name for entry in METHODS.entries() if str(entry.target).startswith("methods.")}
    assert {path.stem for path in FOLDER.glob("*.toml")} == own
    for name in own:
        assert METHODS.get(name).card == read_card(name)


def test_every_switch_is_a_field_and_every_other_deviation_says_what_is_done() -> None:
    for path in FOLDER.glob("*.toml"):
        card, fields = read_card(path.stem), {field.name for field in dataclasses.fields(METHODS.get(path.stem).Config)}
        for row in card.deviations:
            assert row.switch in fields | {""}, (card.name, row.topic)
            assert row.switch or row.ours, (card.name, row.topic)


def test_cards_are_read_without_torch() -> None:
    program = "import sys, methods.cards; methods.cards.read_card('coop'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=FOLDER.parents[1]).returncode == 0
