"""``python -m benchmarks.convert CHECKPOINT OUT``: OpenAI's CLIP files as folders that ``--backbone`` takes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commandline import command
from benchmarks.run import OneLineParser


def build_parser(prog: str = "benchmarks.convert") -> argparse.ArgumentParser:
    """The options."""
    parser = OneLineParser(
        prog=prog, description="Convert a CLIP checkpoint to a folder with safetensors; nothing in it is executed."
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        help="OpenAI's .pt file, or a Hugging Face folder with pytorch_model.bin",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the new folder")
    parser.add_argument(
        "--tokenizer",
        metavar="SOURCE",
        help="Hub name, folder, or OpenAI's bpe_simple_vocab_16e6.txt.gz (default: openai/clip-vit-base-patch32)",
    )
    return parser


@command
def main(argv: Sequence[str] | None = None, prog: str = "benchmarks.convert") -> int:
    """Run the command; exit code 0, or 2 if the checkpoint cannot be used."""
    arguments = build_parser(prog).parse_args(argv)
    from benchmarks.openai_checkpoint import TOKENIZER, CheckpointError, convert
    from methods.parts.backbone import Backbone, BackboneError

    try:
        folder = convert(arguments.checkpoint, arguments.out, tokenizer=arguments.tokenizer or TOKENIZER)
        backbone = Backbone.load(folder)
    except (CheckpointError, BackboneError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    sizes = f"{backbone.image_size} px, patch {backbone.patch_size}, {backbone.vision_layers} vision blocks"
    print(f"{folder}: {sizes}, embedding {backbone.embed_dim}, weights {backbone.weights_hash[:16]}")
    print(f"use it with --backbone {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
