"""``python -m benchmarks.pretrain``: train picto-clip from the public sources.

python -m benchmarks.pretrain corpus ICONIFY_FOLDER OPENCLIPART_FOLDER --out CORPUS
python -m benchmarks.pretrain purge CORPUS PACK.parquet
python -m benchmarks.pretrain train CORPUS --out RUN --recipe clip --steps 10000
python -m benchmarks.pretrain evaluate RUN --headroom
python -m benchmarks.pretrain release RUN --version 3

A run stopped at any time (Ctrl-C, SIGTERM) is saved and resumes with the same command. The corpus is copied to another
machine in parts of at most 12 MiB (52 MiB in all, lossless; a minute of one core to pack, a few seconds to unpack):

python -m benchmarks.pretrain pack CORPUS --out PARTS
python -m benchmarks.pretrain unpack PARTS --out CORPUS

A GPU does all of it with one script (unpack, train or resume, evaluate, keep): bash benchmarks/pretrain/on_gpu.sh.
An unfinished run is stored as a small checkpoint, and training resumes from a copy of it:

python -m benchmarks.pretrain compact RUN --out SMALL
cp -r SMALL RUN2 && python -m benchmarks.pretrain train CORPUS --out RUN2 --recipe clip --steps 24000
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.console import OneLineParser, command, counted

#: The command as it is called.
PROG = "python -m benchmarks.pretrain"


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The command line of ``python -m benchmarks.pretrain``."""
    parser = OneLineParser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    corpus = commands.add_parser("corpus", help="render the corpus")
    corpus.add_argument("iconify", type=Path, help="unpacked @iconify/json (the folder 'package')")
    corpus.add_argument("openclipart", type=Path, help="unpacked openclipart-svg")
    corpus.add_argument("--out", type=Path, required=True, help="corpus folder to write")
    corpus.add_argument("--size", type=int, default=64, help="pixels a side (default 64)")
    corpus.add_argument("--hold-out", type=Path, help="text file of further keys (collection:name) to leave out")
    corpus.add_argument("--jobs", type=int, default=2, help="rendering processes (default 2)")
    purge = commands.add_parser("purge", help="drop from a corpus what equals an image of a PictoDomains pack")
    purge.add_argument("corpus", type=Path, help="corpus folder")
    purge.add_argument("pack", type=Path, help="the pack's Parquet file")
    pack = commands.add_parser("pack", help="write a corpus as small parts, lossless")
    pack.add_argument("corpus", type=Path, help="corpus folder")
    pack.add_argument("--out", type=Path, required=True, help="folder for the parts")
    pack.add_argument("--mib", type=float, default=12, help="MiB a part at most (default 12)")
    unpack = commands.add_parser("unpack", help="join the parts into a corpus folder")
    unpack.add_argument("parts", type=Path, help="folder with part-00.zip, part-01.zip, ...")
    unpack.add_argument("--out", type=Path, required=True, help="corpus folder to write")
    train = commands.add_parser("train", help="train, or resume the run in --out")
    train.add_argument("corpus", type=Path, help="corpus folder")
    train.add_argument("--out", type=Path, required=True, help="run folder (checkpoints, tokenizer)")
    train.add_argument(
        "--recipe", default="invariant", help="clip (v3: image-caption pairs) or invariant (v2; default)"
    )
    train.add_argument(
        "--leave-out-test-classes", action="store_true", help="no drawing that names a test class (picto-clip-unseen)"
    )
    train.add_argument(
        "--leave-out-pack-collections", action="store_true", help="nothing of the collections that PictoDomains uses"
    )
    train.add_argument("--processes", type=int, default=1, help="processes that average gradients, one thread each")
    train.add_argument("--threads", type=int, default=1, help="torch threads a process (default 1)")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any field of the recipe")
    for name, kind in (("steps", int), ("seed", int), ("minutes", float), ("precision", str)):
        train.add_argument(f"--{name}", type=kind, help=f"recipe: {name}")
    compact = commands.add_parser(
        "compact", help="write a checkpoint small enough to keep, from which training resumes"
    )
    compact.add_argument("run", type=Path, help="run folder")
    compact.add_argument("--checkpoint", default="checkpoint", help="checkpoint name (default 'checkpoint')")
    compact.add_argument("--out", type=Path, required=True, help="run folder to write")
    for name, text in (("evaluate", "measure a run on PictoDomains"), ("release", "write a version for shipping")):
        command = commands.add_parser(name, help=text)
        command.add_argument("run", type=Path, help="run folder")
        command.add_argument("--checkpoint", default="checkpoint", help="checkpoint name (default 'checkpoint')")
        if name == "evaluate":
            command.add_argument("--headroom", action="store_true", help="also the gain of simple adaptation (minutes)")
            command.add_argument("--json", type=Path, help="also write the result to this file")
            command.add_argument("--random-weights", action="store_true", help="the same architecture, untrained")
        if name == "release":
            command.add_argument("--version", required=True, help="number or word: picto-clip-v3, picto-clip-unseen")
            command.add_argument("--out", type=Path, help="parent folder (default: the package's assets)")
            command.add_argument("--corpus", type=Path, help="corpus folder, whose list is written next to the card")
            command.add_argument(
                "--beside", type=Path, nargs="*", default=[], help="files of evaluate --headroom --json to compare with"
            )
    return parser


def _recipe(arguments: argparse.Namespace) -> tuple[dict, dict]:
    from benchmarks.pretrain.model import ModelConfig
    from benchmarks.pretrain.train import TrainConfig

    values = {
        name: value
        for name in ("steps", "seed", "minutes", "precision")
        if (value := getattr(arguments, name)) is not None
    }
    model: dict = {}
    known = {f.name: f for f in fields(TrainConfig)}
    sizes = {f.name: f for f in fields(ModelConfig)}
    for item in arguments.set:
        key, _, text = item.partition("=")
        if key not in known and key not in sizes:
            raise ValueError(f"--set {item}: no such field; choose from {', '.join(sorted({*known, *sizes}))}")
        if key in sizes:
            model[key] = int(text)
        else:
            default: Any = known[key].default
            values[key] = (
                tuple(float(t) for t in text.split(",")) if isinstance(default, tuple) else type(default)(text)
            )
    return model, values


@command
def main(argv: list[str] | None = None, prog: str = PROG) -> int:
    """Run one command; returns the exit code."""
    arguments = build_parser(prog).parse_args(argv)
    try:
        if arguments.command == "corpus":
            from benchmarks.pretrain import corpus

            held = frozenset(arguments.hold_out.read_text().split()) if arguments.hold_out else frozenset()
            corpus.build(
                arguments.iconify,
                arguments.openclipart,
                arguments.out,
                size=arguments.size,
                hold_out=held,
                jobs=arguments.jobs,
            )
        elif arguments.command == "purge":
            from benchmarks.pretrain import corpus

            print(f"dropped {counted(len(corpus.purge(arguments.corpus, arguments.pack)), 'drawing')}")
        elif arguments.command == "pack":
            from benchmarks.pretrain import parts

            for file in parts.pack(arguments.corpus, arguments.out, part_bytes=int(arguments.mib * 2**20)):
                print(f"{file} {file.stat().st_size / 2**20:.1f} MiB")
        elif arguments.command == "unpack":
            from benchmarks.pretrain import parts

            print(f"{counted(parts.unpack(arguments.parts, arguments.out), 'drawing')} in {arguments.out}")
        elif arguments.command == "compact":
            from benchmarks.pretrain import compact

            size = compact.write(arguments.run, arguments.checkpoint, arguments.out)
            print(f"{arguments.out}: {size / 1e6:.1f} MB; copy the folder and train with --out COPY to go on")
        elif arguments.command == "train":
            model, values = _recipe(arguments)
            return _train(arguments, model, values, list(argv) if argv is not None else sys.argv[1:])
        elif arguments.command == "evaluate":
            from benchmarks.pretrain import release

            release.evaluate(
                arguments.run,
                arguments.checkpoint,
                headroom=arguments.headroom,
                random_weights=arguments.random_weights,
                json_file=arguments.json,
            )
        else:
            from benchmarks.pretrain import release

            release.write(
                arguments.run,
                arguments.checkpoint,
                version=arguments.version,
                parent=arguments.out,
                corpus=arguments.corpus,
                beside=arguments.beside,
            )
    except (FileNotFoundError, ValueError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    return 0


def _train(arguments: argparse.Namespace, model: dict, values: dict, argv: list[str]) -> int:
    import torch

    from benchmarks.pretrain.data import Corpus
    from benchmarks.pretrain.model import ModelConfig
    from benchmarks.pretrain.train import TrainConfig, Trainer

    torch.set_num_threads(arguments.threads)
    if arguments.processes > 1 and "RANK" not in os.environ:
        common = os.environ | {
            "WORLD_SIZE": str(arguments.processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": os.environ.get("MASTER_PORT", "29511"),
            "OMP_NUM_THREADS": str(arguments.threads),
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        if arguments.recipe == "invariant":
            _ = Corpus(arguments.corpus).regions  # once, before several processes ask for them
        command = [sys.executable, "-m", "benchmarks.pretrain", *argv]
        processes = [subprocess.Popen(command, env=common | {"RANK": str(r)}) for r in range(arguments.processes)]
        codes = [process.wait() for process in processes]
        return max(abs(code) for code in codes)
    corpus = Corpus(
        arguments.corpus,
        pack_collections=not (arguments.leave_out_pack_collections or arguments.recipe == "clip"),
        test_classes=not arguments.leave_out_test_classes,
    )
    Trainer(corpus, arguments.out, ModelConfig(**model), TrainConfig.of(arguments.recipe, **values)).train()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
