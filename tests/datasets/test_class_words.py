"""Class folder names read as words."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.datasets.class_words import read_classes, same_name, words_of
from benchmarks.protocols.task import named_transfers

SPELLINGS = (
    "alarm clock",
    "alarm_clock",
    "Alarm_Clock",
    "AlarmClock",
    "alarm-clock",
    "alarm.clock",
    "12.Alarm.Clock",
    "001.alarm_clock",
    "001_alarm_clock",
    "01 Alarm Clock",
    "n02694662-alarm_clock",
    "Alarm_Clock-n02694662",
    "ALARM CLOCK".title(),
    " alarm clock ",
)


@pytest.mark.parametrize("name", SPELLINGS)
def test_usual_spellings_are_the_same_words(name: str) -> None:
    assert words_of(name) == "alarm clock"
    assert read_classes([("a", name), ("b", "alarm clock")])[name] == "alarm clock"


@pytest.mark.parametrize(
    "name",
    [
        "3 ring binder",
        "TVs",
        "USB stick",
        "iPod",
        "T-shirt",
        "n01440764",
        "007",
        "C++",
        "3.5 inch disk",
        "A",
        "a.b",
        "U.S.A",
        "yolo.v8",
    ],
)
def test_names_that_stay(name: str) -> None:
    assert words_of(name) == name


def test_what_one_domain_tells_apart_stays_apart() -> None:
    crane = read_classes([("a", "001.crane"), ("a", "002.crane"), ("b", "001.crane")])
    assert crane == {"001.crane": "001.crane", "002.crane": "002.crane"}
    crane = read_classes([("a", "n02012849-crane"), ("a", "n03126707-crane"), ("b", "n02012849-crane")])
    assert len(set(crane.values())) == 2
    assert len(set(read_classes([("a", "Turkey"), ("a", "turkey")]).values())) == 2
    assert len(set(read_classes([("a", "C"), ("a", "C++"), ("a", "C#")]).values())) == 3
    assert len(set(read_classes([("a", "alarm clock"), ("a", "alarm_clock")]).values())) == 1


@given(st.text(max_size=30))
def test_reading_twice_changes_nothing_and_unicode_forms_agree(name: str) -> None:
    words = words_of(name)
    assert same_name(words_of(words)) == same_name(words) or words[:1].isdigit()
    assert words_of(unicodedata.normalize("NFD", name)) == words_of(unicodedata.normalize("NFC", name))


@given(st.lists(st.sampled_from(["a", "b to c", "a to b", "c", "to", " to "]), min_size=2, unique=True))
def test_every_transfer_has_a_name_of_its_own(domains: list[str]) -> None:
    pairs = [(one, other) for one in domains for other in domains if one != other]
    assert list(named_transfers(pairs).values()) == pairs
