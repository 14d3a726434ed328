"""``python -m benchmarks.push MODEL OWNER/NAME``: kept weights as a repository of the Hugging Face Hub."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.console import OneLineParser, command, named_path


def build_parser(prog: str = "benchmarks.push") -> argparse.ArgumentParser:
    """The options."""
    parser = OneLineParser(
        prog=prog,
        description="Upload a fitted method's weights with their model card; the backbone's weights are not included.",
        epilog="exit code: 0 done, 1 the hub refused or cannot be reached, 2 a wrong option",
    )
    parser.add_argument(
        "model", metavar="MODEL", type=named_path, help="a record with kept weights, or a folder of weights"
    )
    parser.add_argument("repository", metavar="OWNER/NAME", help="it is made if it is new")
    parser.add_argument("--private", action="store_true", help="if it is new, make it private")
    parser.add_argument("--dry-run", action="store_true", help="list the files; upload nothing")
    return parser


@command
def main(argv: Sequence[str] | None = None, prog: str = "benchmarks.push") -> int:
    """Run the command; exit code 0, 1 if the upload failed, 2 if there are no weights."""
    arguments = build_parser(prog).parse_args(argv)
    from benchmarks.applying.hub import PushError, check_repository, files_to_push, push
    from benchmarks.store.weights import WeightsError

    try:
        check_repository(arguments.repository)
    except PushError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    try:
        for file in files_to_push(arguments.model):
            print(f"{file} ({file.stat().st_size / 1e3:.1f} kB)")
        if not arguments.dry_run:
            print(push(arguments.model, arguments.repository, private=arguments.private))
    except WeightsError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except PushError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
