"""Model cards of fitted methods: a README.md with the metadata that the Hugging Face Hub reads.

The head of the file is YAML between two lines of ``---``: library, tags, base model and, under ``model-index``, one
entry for each score. Every value is written as JSON, which YAML includes, so no name can break the format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from methods.cards import MethodCard

#: Metrics of one task that the text's table shows.
MOST_METRICS = 4


@dataclass(frozen=True)
class ModelScore:
    """The scores of a fitted method on one question: ``metrics`` are fractions by name, those that lead first.

    ``dataset`` is the registered name, ``title`` the one to display; ``question`` is the gallery, or the images of a
    classification; ``selection``: what chose the weights (``oracle`` is marked, it used the test data).
    """

    dataset: str
    title: str
    protocol: str
    split: str
    question: str
    metrics: Mapping[str, float]
    seed: int
    rules: str = "clean"
    selection: str = "val"
    key: str = ""


def model_card(card: MethodCard, config: Mapping[str, Any], backbone: str, scores: Sequence[ModelScore]) -> str:
    """The text of README.md for a method of this card and config that was fitted on the backbone of this name.

    ``scores`` may be empty: the card then says that none are known.
    """
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", backbone) is not None
    head: dict[str, Any] = {"library_name": "ucdr-bench", "pipeline_tag": "image-feature-extraction"}
    if on_hub:
        head["base_model"] = backbone
    head["tags"] = ["ucdr-bench", "cross-domain-retrieval", "clip", card.name]
    if scores:
        head["model-index"] = [{"name": f"{card.title} on {backbone}", "results": [_result(one) for one in scores]}]
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()), "---", ""]
    paper = f" ({_plain(card.authors)}, {_plain(card.venue)} {card.year})" if card.authors and card.year else ""
    lines += [f"# {_plain(card.title)} on {_plain(backbone)}", ""]
    lines += [f"The trained part of `{card.name}`{paper}, fitted with UCDR-Bench. {_plain(card.trains)}".strip(), ""]
    lines += [
        f"The weights of the backbone, `{_plain(backbone)}`, are not included; `method.json` states their hash, and",
        "another backbone is refused.",
        "",
        "## Use",
        "",
        "```python",
        "from benchmarks import load_method, retrieve",
        "",
        'method = load_method("FOLDER")  # the folder of this file',
        "ids, scores = retrieve(method, queries, gallery)  # RGB tensors [B, 3, H, W] in [0, 1]",
        "```",
        "",
        'On a folder of images: `ucdr-bench apply FOLDER IMAGES --text "a cat"`.',
        "",
        "## Scores",
        "",
    ]
    lines += _table(scores) if scores else ["No scores are stored with these weights."]
    if any(one.selection == "oracle" for one in scores):
        lines += ["", "The weights were selected on the test data (oracle): these scores are no fair comparison."]
    lines += ["", "## Settings", "", "| setting | value |", "| --- | --- |"]
    lines += [f"| `{key}` | {_plain(json.dumps(value, default=str))} |" for key, value in config.items()] or [
        "| - | - |"
    ]
    if card.url:
        lines += ["", "## Source", "", f"<{card.url}>"]
    if card.bibtex:
        lines += ["", "```bibtex", card.bibtex.strip(), "```"]
    return "\n".join(lines) + "\n"


def _result(one: ModelScore) -> dict[str, Any]:
    """An entry of ``model-index``."""
    about = f"{one.protocol}, {one.question}, {one.rules} rules, seed {one.seed}"
    kind = "image-classification" if any(name.endswith("[image]") for name in one.metrics) else "image-retrieval"
    return {
        "task": {"type": kind, "name": about},
        "dataset": {"type": one.dataset, "name": one.title or one.dataset, "config": one.protocol, "split": one.split},
        "metrics": [{"type": name, "value": round(value, 6), "name": name} for name, value in one.metrics.items()],
    }


def _table(scores: Sequence[ModelScore]) -> list[str]:
    lines = ["Percent.", "", "| data set | protocol | split | question | seed | scores |", "|" + " --- |" * 6]
    for one in scores:
        leading = list(one.metrics.items())[:MOST_METRICS]
        values = ", ".join(f"{name} {100 * value:.2f}" for name, value in leading)
        cells = (one.title or one.dataset, one.protocol, one.split, one.question, str(one.seed), values)
        lines.append("| " + " | ".join(map(_plain, cells)) + " |")
    return lines


def _plain(text: str) -> str:
    """A text in one line that breaks no table."""
    return " ".join(str(text).split()).replace("|", "\\|")
