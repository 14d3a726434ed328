"""The command-line options that ``run`` and ``ablate`` share. Nothing here imports torch."""

from __future__ import annotations

import argparse

from benchmarks.console import OneLineParser, named_path
from benchmarks.recipes import recipes
from benchmarks.runner.presets import PRESETS


def build_parser(prog: str, description: str, epilog: str, *, splits: bool = True) -> argparse.ArgumentParser:
    """The options of a run; each is absent from the result unless given, so that a file can fill it.

    ``splits``: whether ``--splits`` chooses query domains and transfers (``tune`` has its own).
    """
    parser = OneLineParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to run")
    what.add_argument("--methods", metavar="LIST", help="comma list, or all (default: all)")
    what.add_argument(
        "--datasets",
        metavar="LIST",
        help="comma list, or all = those found, without those marked 'by name only' (default: picto_domains)",
    )
    what.add_argument("--data-root", metavar="FOLDER", help="where data sets are: FOLDER/NAME or FOLDER/NAME.parquet")
    what.add_argument(
        "--protocols", metavar="LIST", help="comma list, or all = without those marked 'by name only' (default: all)"
    )
    if splits:
        what.add_argument(
            "--splits",
            metavar="LIST",
            help="these query domains and transfers alone (freehand,line to flat), or a number: the first N of each"
            " protocol (default: the preset's)",
        )
    what.add_argument("--seeds", metavar="LIST", help="comma list (default: 0)")
    how = parser.add_argument_group("how")
    how.add_argument("--preset", metavar="NAME", help="; ".join(f"{p.name}: {p.summary}" for p in PRESETS.values()))
    how.add_argument("--backbone", metavar="NAME", help="picto-clip (default), a Hub name, or a folder")
    how.add_argument(
        "--rules", metavar="NAME", help="clean (default), or official: as the released code, flaws included"
    )
    how.add_argument("--variant", metavar="NAME", help="named settings of the methods that have them (default: paper)")
    how.add_argument(
        "--select",
        metavar="NAME",
        help="which step's weights: last, val (default), oracle (marked); without target labels (uda, dazsl): im, snd,"
        " bnm, entropy, dev",
    )
    how.add_argument(
        "--selectors",
        metavar="LIST",
        help="record at each validation what these ways to select without target labels say, or all; changes no score",
    )
    how.add_argument(
        "--search",
        action="store_true",
        help="search each fit's learning rate around its paper's on validation data (default: tuned beforehand)",
    )
    how.add_argument("--set", metavar="KEY=VALUE", action="append", help="[method.]field=value; may be repeated")
    how.add_argument(
        "--templates",
        metavar="SET",
        help="class texts of zero_shot: imagenet (80), imagenet_best (7), a .txt file of templates, or a .json file"
        " {class: [sentences]}",
    )
    how.add_argument("--class-names", metavar="FILE", help="JSON {class: name}: names to write in zero_shot's texts")
    how.add_argument("--shots", metavar="K", type=int, help="at most K labelled images a class and domain")
    how.add_argument("--shots-draw", metavar="N", type=int, help="which draw of --shots (default: 0)")
    how.add_argument("--limit", metavar="N", type=int, help="at most N training, query and gallery images each")
    how.add_argument(
        "--validation-limit",
        metavar="N",
        type=int,
        help="validate on at most N query and gallery images",
    )
    how.add_argument("--device", metavar="NAME", help="auto (default), cpu, cuda, cuda:1, ...")
    how.add_argument(
        "--precision", metavar="NAME", help="auto (default: bf16 on a GPU that has it), float32, tf32, bf16"
    )
    how.add_argument(
        "--compile", action="store_true", help="compile the frozen towers (torch.compile); changes last digits"
    )
    how.add_argument(
        "--threads",
        metavar="N",
        type=int,
        help="CPU threads of each fit (default: OMP_NUM_THREADS, or cores / jobs); changes last digits",
    )
    files = how.add_mutually_exclusive_group()
    files.add_argument(
        "--config", metavar="FILE", type=named_path, help="TOML file with these options; the command line wins"
    )
    files.add_argument("--recipe", metavar="NAME", help=f"a paper's table, as --config: {', '.join(recipes())}")
    run = parser.add_argument_group("the run")
    run.add_argument("--out", metavar="FOLDER", help="results folder (default: results/run)")
    run.add_argument(
        "--keep-weights",
        metavar="WHICH",
        help="keep fitted weights with the records: all, or best (by validation, over seeds and settings)",
    )
    run.add_argument(
        "--track", metavar="LIST", help="send losses and scores to tensorboard, wandb, mlflow, ..., or module:Class"
    )
    run.add_argument("--jobs", metavar="N", type=int, help="fits at the same time (default: the cores, or GPUs, allow)")
    run.add_argument(
        "--executor", metavar="NAME", help="local (default), ray (--jobs workers on a cluster), or a plugin's"
    )
    run.add_argument(
        "--shard", metavar="I/N", help="part I (from 1) of N; the parts may share --out or be copied together"
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="list the cells, which are cached and how long the rest may take; write nothing",
    )
    run.add_argument("--force", action="store_true", help="run cells again that are finished")
    run.add_argument("--fail-fast", action="store_true", help="stop at the first failure")
    return parser
