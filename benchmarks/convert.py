"""``python -m benchmarks.convert CHECKPOINT OUT``: CLIP files as folders for ``--backbone``."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence

from benchmarks.backbones.open_clip_config import ACTIVATIONS
from benchmarks.console import OneLineParser, command, named_path


def build_parser(prog: str = "benchmarks.convert") -> argparse.ArgumentParser:
    """The options."""
    parser = OneLineParser(
        prog=prog, description="Convert a CLIP checkpoint to a folder with safetensors; nothing in it is executed."
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=named_path,
        help="OpenAI's .pt file, open_clip's weights (file or folder), or a Hugging Face folder with pytorch_model.bin",
    )
    parser.add_argument("out", metavar="OUT", type=named_path, help="the new folder")
    parser.add_argument(
        "--tokenizer",
        metavar="SOURCE",
        help="Hub name, folder, or OpenAI's bpe_simple_vocab_16e6.txt.gz (default: openai/clip-vit-base-patch32)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=named_path,
        help="open_clip's open_clip_config.json of these weights (default: the one beside them)",
    )
    parser.add_argument(
        "--activation",
        metavar="NAME",
        choices=ACTIVATIONS,
        help="without a config: gelu (open_clip) or quick_gelu (OpenAI); OpenAI's own archives need no option",
    )
    parser.add_argument(
        "--head-width",
        metavar="N",
        type=_width,
        help="without a config: width of the vision heads (64; 80 for ViT-H, 88 for ViT-g, 104 for ViT-bigG)",
    )
    return parser


def _width(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, not {text!r}")
    return int(text)


@command
def main(argv: Sequence[str] | None = None, prog: str = "benchmarks.convert") -> int:
    """Run the command; exit code 0, or 2 if the checkpoint cannot be used."""
    arguments = build_parser(prog).parse_args(argv)
    from benchmarks.backbones.openai_checkpoint import TOKENIZER, CheckpointError, convert
    from benchmarks.backbones.sources import load
    from methods.parts.backbone import BackboneError, ClipBackbone

    folder = None
    try:
        folder = convert(
            arguments.checkpoint,
            arguments.out,
            tokenizer=arguments.tokenizer or TOKENIZER,
            config=arguments.config,
            activation=arguments.activation,
            head_width=arguments.head_width,
        )
        backbone = load(str(folder), device="cpu", precision="float32")
    except (CheckpointError, BackboneError, OSError) as error:
        if folder is not None:  # converted, but it cannot be loaded; the folder was new or empty before
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    sizes = f"{backbone.image_size} px, embedding {backbone.embed_dim}"
    if isinstance(backbone, ClipBackbone):
        vision = backbone.model.config.vision_config
        heads = vision.hidden_size // vision.num_attention_heads
        sizes = f"{vision.hidden_act}, heads of {heads}, {backbone.image_size} px, patch {backbone.patch_size}"
        sizes += f", {backbone.vision_layers} vision blocks, embedding {backbone.embed_dim}"
    print(f"{folder}: {sizes}, weights {backbone.weights_hash[:16]}")
    print(f"use it with --backbone {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
