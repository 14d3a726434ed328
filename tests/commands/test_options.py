"""Every command answers a wrong option in one line that names it, with exit code 2."""

from __future__ import annotations

import importlib

import pytest

MODULES = (
    *("ablate", "apply", "compare", "convert", "data", "embed", "pack", "push", "report", "run", "tune"),
    *("pretrain.__main__", "datasets.build.picto_build", "datasets.build.wordnet_build"),
    *(f"speed.{name}" for name in ("feeding", "gpu", "ranking", "report", "training")),
)


@pytest.mark.parametrize("module", MODULES)
def test_an_unknown_option_is_one_line(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(f"benchmarks.{module}").main(["--hlep"])
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert line.endswith("(--help lists the options)")


@pytest.mark.parametrize(
    ("module", "option", "value", "said"),
    [
        ("speed.run", "--repeats", "many", "argument --repeats: a whole number is needed, not 'many'"),
        ("speed.run", "--repeats", "0", "--repeats must be at least 1"),
        ("speed.gpu", "--minutes", "long", "argument --minutes: a number is needed, not 'long'"),
        ("speed.feeding", "--step-ms", "x", "argument --step-ms: a number is needed, not 'x'"),
        ("speed.ranking", "--dim", "1.5", "argument --dim: a whole number is needed, not '1.5'"),
        ("speed.training", "--steps", "", "argument --steps: a whole number is needed, not ''"),
        ("tune", "--splits", "two", "argument --splits: a whole number is needed, not 'two'"),
    ],
)
def test_a_value_that_is_no_number_is_one_line(
    module: str, option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(f"benchmarks.{module}").main([option, value])
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert said in line


def test_pretraining_names_an_unknown_field_of_its_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.pretrain.__main__ import main

    assert main(["train", "corpus", "--out", "run", "--set", "nothing=1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m benchmarks.pretrain: --set nothing=1: no such field")
