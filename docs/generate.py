"""Write the parts of the documentation that follow from the code: ``python docs/generate.py`` (``--check``: compare).

* ``docs/discrepancies.md``: the ledger of what each paper's released code does differently, from the method cards.
* In ``docs/methods.md``: each method's settings (from its ``Config`` and the comments beside its fields) and ablations.
* In ``docs/datasets.md``: every data set's source, layout, size and known problems, from the data set cards.
* In ``docs/reproduce.md``: the recipes.
* In ``README.md`` and ``docs/results.md``: the tables of the committed reference, from ``reports/reference``,
  ``results/reference`` and ``results/invariant``, and of the ablations, from ``results/ablations``.

Inside a page, a generated part is between ``<!-- generated: NAME -->`` and ``<!-- end of NAME -->``. A test fails when
a committed page differs from what this script writes.
"""

from __future__ import annotations

import argparse
import ast
import csv
import dataclasses
import functools
import inspect
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

COMMAND = "python docs/generate.py"

LEDGER_HEAD = f"""\
# Discrepancies between papers and released code

This page is generated from the method cards (`methods/cards/*.toml`) by `{COMMAND}`.
Each row is one place where the code released with a paper does something else than the paper says, cannot run, or uses
test data. The cards are written from the abstracts, the README files and the code at these commits: ProS `ccb8841`,
UCDR-Adapter `dbbd797`, AD-CLIP `c82d861` (with Dassl `c61a1b5`), SRE-CLIP `f392d02`,
DAPL `f2d8f24`, CoCoOp `1fbb1a6`, MaPLe `904dbd7`, PromptSRC `8be7dcf`,
CLIP-Adapter `9ac913a`, Tip-Adapter `327763e`, Sketch_LVM `432c504`, PDA `144e6c4`, CMKD `052f925`.
"Not in the abstract" means that
the paper's abstract leaves the point open, so the released code may well be what the authors intended.

* **Switch**: the field of the method's config that chooses between the two. The default is the paper's behaviour;
  `--variant official` sets all switches of a method to the released code's. One switch alone:
  `--set METHOD.SWITCH=VALUE`.
* **Here**: what this suite does where there is no switch, or in both variants.

What belongs to a data set or protocol and not to a method (class splits, metrics, selection on the test set) is chosen
with `--rules official`: see [Protocols](protocols.md#clean-and-official-rules). The official variants are checked
against outputs of the released implementations ([golden fixtures](../tests/golden/README.md)).
"""


def cell(text: str) -> str:
    """Text as one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *(list(map(cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def plain(text: str) -> str:
    """A docstring's reST as Markdown: roles and double backticks become code."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?([\w]+)`", r"`\1`", text)
    return text.replace("``", "`")


# --- methods ----------------------------------------------------------------------------------------------------------


def method_classes() -> dict[str, Any]:
    """Every method of this repository by name, in the order of the registry."""
    from methods.registry import METHODS

    own = [entry.name for entry in METHODS.entries() if str(entry.target).startswith("methods.")]
    return {name: METHODS.get(name) for name in own}


def bullets(docstring: str) -> list[str]:
    """The items of a docstring's lists, each as one line."""
    items: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        if block.startswith("* "):
            items += [" ".join(item.split()) for item in re.split(r"(?:^|\n)\* ", block) if item.strip()]
    return items


def comments(config: type) -> dict[str, str]:
    """What the comment beside each field of a ``Config`` says, with the comment lines right below it.

    Fields of base classes come first, as in the dataclass; a class that gives a field another default may leave the
    comment to its base.
    """
    texts: dict[str, str] = {}
    for kind in reversed(config.__mro__):
        if not dataclasses.is_dataclass(kind):
            continue
        source = textwrap.dedent(inspect.getsource(kind))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        found = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            below = (node.end_lineno or node.lineno) + 1
            lines = [found[number] for number in range(node.lineno, below) if number in found]
            while lines and below in found and found[below].line.lstrip().startswith("#"):
                lines.append(found[below])
                below += 1
            if lines:
                texts[node.target.id] = " ".join(line.string.lstrip("#: ").rstrip() for line in lines)
    return texts


def meanings(config: type) -> list[tuple[tuple[str, ...], str]]:
    """The fields of a ``Config`` with their meaning: the comment beside each, or what the class's docstring says.

    In a docstring, fields that one item explains go together.
    """
    beside = comments(config)
    if beside:
        return [((field.name,), plain(beside.get(field.name, ""))) for field in dataclasses.fields(config)]
    left = [field.name for field in dataclasses.fields(config)]
    items = bullets(config.__doc__ or "") or [" ".join((config.__doc__ or "").split())]
    owner: dict[str, int] = {}
    for pattern in (r"(``\w+``(?:, ``\w+``)*):", r"(``\w+``)"):  # first what an item defines, then what it mentions
        for number, item in enumerate(items):
            for names in re.findall(pattern, item):
                for name in re.findall(r"\w+", names):
                    if name in left:
                        owner.setdefault(name, number)
    rows = [
        (tuple(name for name in left if owner.get(name) == number), plain(item)) for number, item in enumerate(items)
    ]
    unexplained = tuple(name for name in left if name not in owner)
    return [row for row in (*rows, (unexplained, "")) if row[0]]


def shown(value: Any) -> str:
    """A setting's value as ``--set`` takes it."""
    text = str(value).lower() if isinstance(value, bool) else f'"{value}"' if value == "" else str(value)
    return f"`{text}`"


def settings_table(method: Any) -> str:
    """The settings of a method: defaults, the official variant where it differs, and their meaning."""
    config = method.Config()
    official = method.variants.get("official", {})

    def official_values(names: tuple[str, ...]) -> str:
        changed = {name: official[name] for name in names if name in official and official[name] != value(name)}
        return ", ".join(f"`{name}` {shown(new)}" for name, new in changed.items())

    def value(name: str) -> Any:
        return getattr(config, name)

    rows = (
        (", ".join(f"`{name}` {shown(value(name))}" for name in names), official_values(names), text)
        for names, text in meanings(method.Config)
    )
    head = ("field and default", "official variant", "meaning")
    if not official:
        return table((head[0], head[2]), ((row[0], row[2]) for row in rows))
    return table(head, rows)


def ablations_table(method: Any) -> str:
    """What ``benchmarks.ablate`` switches, one factor a row."""
    rows = (
        (f"`{name}`", ", ".join(f"`{key}` {shown(new)}" for key, new in changes.items()))
        for name, changes in method.ablations.items()
    )
    return table(("factor", "what it changes"), rows)


def ledger() -> str:
    """``docs/discrepancies.md``."""
    parts = [LEDGER_HEAD]
    for name, method in method_classes().items():
        card = method.card
        if not card.deviations:
            continue
        licence = f" Licence of the released code: {card.code_licence}." if card.code_licence else ""
        parts.append(f"## {card.title}\n\n`{name}`; {card.authors}, {card.venue} {card.year}.{licence}\n")
        rows = (
            (d.topic, d.paper, d.released, f"`{d.switch}`" if d.switch else "", d.ours or "by the switch")
            for d in card.deviations
        )
        parts.append(table(("topic", "paper", "released code", "switch", "here"), rows))
    return "\n".join(parts)


# --- data sets and recipes --------------------------------------------------------------------------------------------


def dataset_cards() -> str:
    """Every data set's card."""
    from benchmarks.datasets.registry import DATASETS

    parts = []
    for entry in DATASETS.entries():
        if not str(entry.target).startswith("benchmarks."):
            continue
        found = DATASETS.get(entry.name)
        card = found.card
        counts: Mapping[str, int] = getattr(found, "published_counts", {})
        sizes = ", ".join(f"{domain} {count:,}" for domain, count in counts.items())
        facts = {
            "source": card.source,
            "licence": card.licence,
            "folder": f"`{card.layout}`" if card.layout else "embedded; no folder needed",
            "published images": f"{sizes}; {sum(counts.values()):,} in all" if counts else "",
            "gallery domain": card.gallery_domain or "chosen by the rule of the data set",
            "leading metrics": ", ".join(f"`{name}`" for name in card.headline.metrics()),
            "by name only": "" if entry.by_default else "yes: `--datasets all` leaves it out",
        }
        parts.append(f"### {entry.name}\n\n{card.title}.\n")
        parts += [f"* {key}: {text}" for key, text in facts.items() if text]
        parts += [f"* known problem: {text}" for text in card.known_problems]
        parts.append("")
    return "\n".join(parts)


def recipes_table() -> str:
    """The packaged recipes, as their files state them."""
    from benchmarks.runner.settings import recipe_file, recipes, resolve

    rows = []
    for name in recipes():
        one = resolve({}, recipe_file(name))
        rows.append(
            (
                f"[`{name}`](../benchmarks/recipes/{name}.toml)",
                ", ".join(one.protocols),
                ", ".join(one.datasets),
                one.backbone.removeprefix("openai/"),
                f"{one.rules}, {one.variant}",
                ", ".join(map(str, one.seeds)),
                f"{one.gpu_hours_each_fit:g}",
            )
        )
    head = ("recipe", "protocol", "data set", "backbone", "rules, variant", "seeds", "GPU hours a fit (estimate)")
    return table(head, rows)


def step_hours() -> str:
    """GPU hours of the papers' recipes on transformers, from operations and rates."""
    from benchmarks.recipes import paper_config
    from benchmarks.runner import sizing
    from benchmarks.runner.plan import make_config
    from benchmarks.runner.settings import recipe_file, resolve
    from methods.registry import METHODS

    rows = []
    for name, work in sizing.RECIPE_WORK.items():
        settings = resolve({}, recipe_file(name))
        (method,) = settings.methods
        given = {key.rpartition(".")[2]: value for key, value in settings.set}
        config = make_config(METHODS.get(method), settings, given, paper_config(method, settings.datasets[0]))
        hours = {}
        for precision in ("float32", "tf32", "bf16"):
            hours[precision], steps = sizing.recipe_hours(method, config, work, precision, sizing.rate(precision)[0])
        memory = max(step.gib(sizing.PUBLISHED_MIB[work.backbone], settings.precision) for step in steps)
        counts = [f"{count:,} x {step.flops / 1e12:.3g}" for count, step in zip(work.steps, steps, strict=True)]
        rows.append(
            (
                f"`{name}`",
                work.backbone,
                " + ".join(counts),
                *(f"{'**' if precision == settings.precision else ''}{value:.2g}"
                  f"{'**' if precision == settings.precision else ''}" for precision, value in hours.items()),
                f"{memory:.3g}",
            )
        )  # fmt: skip
    head = ("recipe", "backbone", "steps x TFLOP", "hours, float32", "tf32", "bf16", "GiB")
    rates = "; ".join(f"{name} {sizing.rate(name)[0]:g} TFLOP/s ({sizing.rate(name)[1]})" for name in sizing.ASSUMED)
    return f"Rates: {rates}.\n\n{table(head, rows)}"


def step_memory() -> str:
    """GPU memory of a training step by method, backbone and number of classes."""
    from benchmarks.runner import sizing
    from methods.registry import METHODS

    rows = []
    for method in sizing.DESCRIBED:
        config = METHODS.get(method).Config()
        for precision in ("float32", "bf16"):
            cells = []
            for name, towers in sizing.PUBLISHED.items():
                for classes in (65, 345):
                    steps = sizing.steps_of(method, config, towers, classes, 5, sizing.PUBLISHED_MIB[name]) or []
                    cells.append(f"{max(step.gib(sizing.PUBLISHED_MIB[name], precision) for step in steps):.3g}")
            rows.append((f"`{method}`", precision, *cells))
    head = ("method", "precision", *(f"{name}, {count} classes" for name in sizing.PUBLISHED for count in (65, 345)))
    return table(head, rows)


# --- the reference ----------------------------------------------------------------------------------------------------

REFERENCE = "reports/reference"

#: Columns of the reference tables: protocol, gallery, metric, and the heading.
QUESTIONS = {
    ("ucdr", "unseen", "map@all"): "UCDR unseen, mAP@all",
    ("ucdr", "mixed", "map@all"): "UCDR mixed, mAP@all",
    ("uccdr", "unseen", "map@all"): "UcCDR unseen, mAP@all",
    ("udcdr", "seen", "map@all"): "UdCDR seen, mAP@all",
    ("uda", "target", "accuracy[image]"): "UDA, accuracy",
    ("uda", "source", "map@all"): "UDA, target to source, mAP@all",
    ("dazsl", "target", "h[image]"): "DAZSL, H",
}


def reference_rows(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file of the reference's report."""
    with (ROOT / REFERENCE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def reference_backbones() -> list[str]:
    """Backbones of the reference, in the order of its leaderboard."""
    return list(dict.fromkeys(row["backbone"] for row in reference_rows("leaderboard.csv")))


def question_table(rows: Iterable[Iterable[str]]) -> str:
    """A table of methods with a column of numbers for each question."""
    made = table(("method", *QUESTIONS.values()), rows)
    return made.replace("| --- |" + " --- |" * len(QUESTIONS), "|---|" + "---:|" * len(QUESTIONS))


def reference_scores(backbone: str) -> str:
    """Mean of every method in each question with half of its 95 % interval, in percent; best UCDR score first."""
    scores: dict[str, dict[tuple[str, str, str], str]] = {}
    order: dict[str, tuple[bool, float]] = {}
    for row in reference_rows("leaderboard.csv"):
        question = (row["protocol"], row["gallery"], row["metric"])
        if row["backbone"] != backbone or row["query_domain"] != "mean" or question not in QUESTIONS:
            continue
        floor = row["floor"] == "True"
        label = f"{row['label']} (floor)" if floor else row["label"]
        text = "n/a" if row["status"] == "not_applicable" else row["status"]
        if row["value"]:
            half = f" ± {50 * (float(row['high']) - float(row['low'])):.1f}" if row["low"] else ""
            text = f"{100 * float(row['value']):.1f}{half}{'†' if row['extension'] else ''}"
        scores.setdefault(label, {})[question] = text
        if question == next(iter(QUESTIONS)):
            order[label] = (floor, -float(row["value"] or "nan"))
    lines = [
        (label, *(scores[label].get(question, "-") for question in QUESTIONS))
        for label in sorted(scores, key=lambda label: order.get(label, (True, 0.0)))
    ]
    return question_table(lines)


def reference_pairs() -> str:
    """How many pairs of methods are separable in each question, floors left out, and how many from zero-shot CLIP.

    Methods of the same ranking are one.
    """
    floors = {row["label"] for row in reference_rows("leaderboard.csv") if row["floor"] == "True"}
    rows = [row for row in reference_rows("pairs.csv") if not floors & {row["better"], row["worse"]}]

    def share(backbone: str, question: tuple[str, str, str], *, zero_shot: bool) -> str:
        asked = [
            row for row in rows
            if row["backbone"] == backbone and (row["protocol"], row["gallery"], row["metric"]) == question
        ]  # fmt: skip
        first = {name: name for row in asked for name in (row["better"], row["worse"])}
        for row in asked:
            if row["same"] == "True":
                for name in (row["better"], row["worse"]):
                    first[name] = min(first[name], row["better"], row["worse"])
        wanted = first.get("zero_shot")
        of = {
            frozenset((first[row["better"]], first[row["worse"]])): float(row["p_holm"]) <= 0.05
            for row in asked
            if row["same"] != "True" and (not zero_shot or wanted in (first[row["better"]], first[row["worse"]]))
        }
        return f"{sum(of.values())} of {len(of)}" if of else "-"

    backbones = reference_backbones()
    kinds = [(backbone, zero_shot) for backbone in backbones for zero_shot in (False, True)]
    head = ("question", *(f"{backbone}: {'from zero-shot' if only else 'all pairs'}" for backbone, only in kinds))
    return table(
        head,
        ((title, *(share(b, question, zero_shot=only) for b, only in kinds)) for question, title in QUESTIONS.items()),
    )


@functools.cache
def reference_records(folder: Path) -> tuple[Any, Any]:
    """Frame and records of the reference run, read once."""
    from benchmarks.store.frame import frame_and_records

    return frame_and_records(folder, print)


def reference_training() -> str:
    """Fits of the reference by how their training ended, and searched rates at an end of their range."""
    import pandas as pd

    frame = pd.concat([reference_records(ROOT / "results" / name)[0] for name in ("reference", "invariant")])
    fits = frame[frame["status"] == "ok"].drop_duplicates(["backbone", "method", "variant", "fit_id", "seed"])
    rows = []
    for backbone in dict.fromkeys(fits["backbone"]):
        own = fits[(fits["backbone"] == backbone) & fits["convergence"].isin(["converged", "rising"])]
        rising = own[own["convergence"] == "rising"]
        by_method = ", ".join(f"{name} {count}" for name, count in rising["method"].value_counts().items())
        edges = fits[(fits["backbone"] == backbone) & (fits["edge"] != "")]
        at_edge = ", ".join(f"{name} {count}" for name, count in edges["method"].value_counts().items())
        share = f"{100 * (1 - len(rising) / len(own)):.1f} %" if len(own) else "-"
        rows.append((backbone, f"{len(own):,}", share, by_method or "none", at_edge or "none"))
    head = ("backbone", "fits", "converged", "fits still rising, by method", "fits with a rate at the end of its range")
    return table(head, rows)


def two_backbones() -> str:
    """What each method adds to zero-shot CLIP on picto-clip v3 and on picto-clip-invariant: seed 0, the same splits.

    In points, the zero-shot scores first; methods whose ranking is zero-shot's have 0.0.
    """
    import pandas as pd

    question_of = ["protocol", "gallery", "metric"]
    both = []
    for name in ("reference", "invariant"):
        frame, _ = reference_records(ROOT / "results" / name)
        asked = pd.MultiIndex.from_frame(frame[question_of]).isin(list(QUESTIONS))
        frame = frame[asked & (frame["status"] == "ok") & (frame["seed"] == 0) & ~frame["floor"]]
        both.append(frame.set_index([*question_of, "method", "split"])["value"])
    joined = both[0].to_frame("v3").join(both[1].rename("invariant"), how="inner")
    means = joined.groupby([*question_of, "method"]).mean()

    def text(question: tuple[str, str, str], method: str) -> str:
        of_question = means.loc[question]
        if method not in of_question.index:
            return "-"
        if method == "zero_shot":
            return " / ".join(f"{100 * value:.1f}" for value in of_question.loc[method])
        gains = 100 * (of_question.loc[method] - of_question.loc["zero_shot"])
        return " / ".join(f"{value:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0") for value in gains)

    first = means.loc[next(iter(QUESTIONS))]
    methods = sorted(first.index, key=lambda name: (name != "zero_shot", -first.loc[name, "invariant"], name))
    lines = [(name, *(text(question, name) for question in QUESTIONS)) for name in methods]
    return question_table(lines)


def reference_agreement() -> str:
    """Rank correlation of the methods' order between two seeds, by question."""
    from benchmarks.reporting.method_comparison import seed_agreement
    from benchmarks.reporting.tables import newest

    frame, _ = reference_records(ROOT / "results" / "reference")
    rows = [
        (f"{row['backbone']}, {QUESTIONS[question]}", f"{row['mean']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}",
         str(row["seeds"]), str(row["methods"]))
        for row in seed_agreement(newest(frame)).to_dict("records")
        if (question := (row["protocol"], row["gallery"], row["metric"])) in QUESTIONS
    ]  # fmt: skip
    return table(("question", "rank correlation of two seeds", "least and greatest", "seeds", "methods"), rows)


def reference_selectors() -> str:
    """Mean regret over the methods of what each way to select picks, in points, by question; the largest beside it."""
    from benchmarks.reporting.data import ReportData
    from benchmarks.reporting.selector_picks import SELECTOR_ORDER, means_over_methods
    from benchmarks.store.files import ResultStore

    store = ResultStore(ROOT / "results" / "reference")
    frame, records = reference_records(store.root)
    names = [name for name in SELECTOR_ORDER if name != "oracle"]
    rows = []
    for part in ReportData(frame, store=store, records=records).settings:
        picks = [one for one in part.selector_picks if one.protocol in ("uda", "dazsl") and one.over == "steps"]
        for mean in means_over_methods(picks):
            of_question = [one for one in picks if (one.protocol, one.question) == (mean.protocol, mean.question)]
            worst = {name: max(of_question, key=lambda one, name=name: one.regret(name)) for name in names}
            title = f"{mean.protocol.upper()} {mean.question}, {mean.label}, {mean.fits} fits"
            rows.append((
                title, f"{100 * mean.scores['oracle']:.1f}",
                *(f"{100 * mean.regret(name):.1f} ({100 * one.regret(name):.1f}, {one.label})"
                  for name, one in worst.items()),
            ))  # fmt: skip
    return table(("question", "oracle", *names), rows)


@functools.cache
def committed_ablations() -> tuple[Any, ...]:
    """The ablation tables of ``results/ablations``, read once."""
    from benchmarks.reporting.data import ReportData
    from benchmarks.reporting.tables import settings_of
    from benchmarks.store.files import ResultStore

    store = ResultStore(ROOT / "results" / "ablations")
    frame, records = reference_records(store.root)
    data = ReportData(frame, store=store, records=records)
    return tuple(one for setting in settings_of(frame) for one in data.ablations(setting))


def excludes_zero(difference: Any) -> bool:
    """Whether a difference has an interval over seeds, and 0 is outside it."""
    return difference is not None and difference.low is not None and not difference.low <= 0 <= difference.high


def reference_ablations() -> str:
    """Factors with an interval that excludes 0, the default's scores first; such differences are bold."""
    from benchmarks.reporting.types import DEFAULT

    rows: list[tuple[str, ...]] = []
    names = committed_ablations()[0].questions
    for of_method in committed_ablations():
        scores = [of_method.scores[DEFAULT][name].value for name in names]
        rows.append((of_method.method, "default", *(f"{100 * score:.1f}" for score in scores)))
        for arm in of_method.scores:
            excludes = [excludes_zero(of_method.difference(arm, name)) for name in names]
            changes = [of_method.change(arm, name) or "-" for name in names]
            if any(excludes):
                bold = [f"**{text}**" if mark else text for text, mark in zip(changes, excludes, strict=True)]
                rows.append(("", f"`{arm}`", *bold))
    head = [name.replace(": map@all", ", mAP@all").replace(": h[image]", ", H") for name in names]
    return table(("method", "factor", *head), rows)


def ablation_counts() -> str:
    """How many differences there are, and how many of their intervals exclude 0."""
    differences = [
        one
        for of_method in committed_ablations()
        for arm in of_method.scores
        for name in of_method.questions
        if (one := of_method.difference(arm, name)) is not None and one.low is not None
    ]
    return f"{sum(map(excludes_zero, differences))} of {len(differences)} intervals exclude 0.\n"


# --- pages ------------------------------------------------------------------------------------------------------------


def parts() -> dict[str, Callable[[], str]]:
    """The generated parts by name."""
    found: dict[str, Callable[[], str]] = {"dataset cards": dataset_cards, "recipes": recipes_table}
    found |= {"hours of recipes": step_hours, "memory of steps": step_memory}
    found |= {"reference pairs": reference_pairs, "reference training": reference_training}
    found |= {"reference agreement": reference_agreement, "reference selectors": reference_selectors}
    found |= {"two backbones": two_backbones}
    found |= {"reference ablations": reference_ablations, "ablation counts": ablation_counts}
    for backbone in reference_backbones():
        found[f"reference scores {backbone}"] = lambda backbone=backbone: reference_scores(backbone)
    for name, method in method_classes().items():
        found[f"settings of {name}"] = lambda method=method: settings_table(method)
        found[f"ablations of {name}"] = lambda method=method: ablations_table(method)
    return found


def filled(page: str, available: Mapping[str, Callable[[], str]]) -> str:
    """A page with its generated parts written anew; raises ``KeyError`` for a part that does not exist."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- generated: {name} -->\n\n{available[name]().strip()}\n\n<!-- end of {name} -->"

    return re.sub(r"<!-- generated: (.+?) -->.*?<!-- end of \1 -->", fill, page, flags=re.DOTALL)


def pages() -> dict[Path, str]:
    """Every page with generated content, as it should be."""
    available = parts()
    made = {DOCS / "discrepancies.md": ledger()}
    for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]:
        page = path.read_text(encoding="utf-8")
        if "<!-- generated: " in page and path not in made:
            made[path] = filled(page, available)
    return made


def main(argv: list[str] | None = None) -> int:
    """Write or compare; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is out of date")
    check = parser.parse_args(argv).check
    stale = [
        (path, text) for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        print(f"{path.relative_to(ROOT)} {f'is out of date: run {COMMAND}' if check else 'written'}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
