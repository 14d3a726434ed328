"""``python -m benchmarks.embed DATASET --out FILE``: a data set's embeddings as Parquet or ``.npy``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.console import OneLineParser, command, counted, named_path


def build_parser(prog: str = "benchmarks.embed") -> argparse.ArgumentParser:
    """The options."""
    parser = OneLineParser(
        prog=prog,
        description="Write the embeddings of a data set's images, with keys, classes, domains and splits.",
        epilog="exit code: 0 done, 2 a wrong option, or an image that cannot be read",
    )
    parser.add_argument("dataset", metavar="DATASET", help="its name (ucdr-bench datasets lists them)")
    parser.add_argument(
        "--out", metavar="FILE", type=named_path, required=True, help="ends in .parquet, or .npy (+ .csv)"
    )
    parser.add_argument("--model", metavar="MODEL", help="a record with kept weights, or a folder of weights")
    parser.add_argument("--backbone", metavar="NAME", help="without MODEL: CLIP as it is (default: picto-clip)")
    parser.add_argument("--data-root", metavar="FOLDER", help="where data sets are: FOLDER/NAME or FOLDER/NAME.parquet")
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto (default), cpu, cuda, ...")
    return parser


@command
def main(argv: Sequence[str] | None = None, prog: str = "benchmarks.embed") -> int:
    """Run the command; exit code 0, or 2 if the file could not be made."""
    arguments = build_parser(prog).parse_args(argv)
    from benchmarks.applying.export import export_embeddings, open_dataset
    from benchmarks.applying.image_index import ApplyError
    from benchmarks.applying.loading import load_method, load_plain
    from benchmarks.datasets.base import DatasetError
    from benchmarks.datasets.image_workers import progress_bar
    from benchmarks.runner.settings import SettingsError
    from benchmarks.store.weights import WeightsError
    from methods.registry import UnknownNameError

    file = arguments.out
    try:
        if file.suffix not in (".parquet", ".npy"):
            raise ApplyError(f"--out {file}: its ending must be .parquet or .npy")
        dataset = open_dataset(arguments.dataset, arguments.data_root)
        if arguments.model:
            loaded = load_method(arguments.model, arguments.backbone, arguments.device)
        else:
            loaded = load_plain(arguments.backbone or "picto-clip", arguments.device)
        with progress_bar(len(dataset.table), "images embedded") as advance:
            count, width = export_embeddings(loaded.method, loaded.key, dataset, file, advance)
    except (ApplyError, WeightsError, DatasetError, SettingsError, UnknownNameError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{prog}: {file}: cannot be written ({error.strerror or error})", file=sys.stderr)
        return 2
    method = loaded.method
    size = f"{counted(count, 'image')}, {counted(width, 'dimension')}"
    print(f"{file}: {size}, {method.card.name} on {method.backbone.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
