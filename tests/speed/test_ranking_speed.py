"""The speed benchmark runs, reports honest numbers, and answers --help without numpy or torch."""

import json
import subprocess
import sys

import pytest

from benchmarks.speed import ranking


def test_small_run_prints_and_writes_the_ratio(tmp_path, capsys):
    out = tmp_path / "speed" / "ranking.json"
    sizes = ["--queries", "1500", "--gallery", "900", "--dim", "32", "--classes", "30", "--repeats", "2"]
    assert ranking.main([*sizes, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert len(result["product_s"]) == len(result["ranking_s"]) == 2
    assert result["ratio"] > 1
    assert 0 < result["means"]["map@all"] <= 1
    printed = capsys.readouterr()
    assert f"ratio                 {result['ratio']:8.2f}" in printed.out
    assert printed.err == ""


def test_progress_covers_all_queries_of_every_phase():
    seen = dict.fromkeys(ranking.PHASES, 0)

    def count(phase, done):
        seen[phase] += done

    ranking.measure(1100, 50, 8, 5, 2, "sqeuclidean", progress=count)
    assert seen == dict.fromkeys(ranking.PHASES, 2200)


def test_bad_size_is_one_line():
    with pytest.raises(SystemExit) as error:
        ranking.main(["--queries", "0"])
    assert error.value.code == 2


def test_help_and_threads_do_not_need_numpy_or_torch():
    code = (
        "import sys\nfrom benchmarks.speed import ranking\n"
        "try:\n    ranking.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'numpy', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--threads" in done.stdout
