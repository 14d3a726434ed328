"""Published figures beside ours: what the papers report, what the store holds for the same question, and the gap.

The figures are in ``benchmarks/published/published.csv``, each with its source and how it was read. A figure is
matched with a record of ours only if method, data set, protocol, split, gallery, backbone, metric convention and class
split are the same; else ``ours`` is blank and ``reason`` says why. Where both are given, ``reason`` names what still
differs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.datasets import registry
from benchmarks.recipes import paper_config
from benchmarks.reporting.tables import current, is_ablated, row_labels

PUBLISHED = Path(__file__).parents[1] / "published" / "published.csv"

#: Columns of the file, all text.
FILE_COLUMNS = (
    "paper",
    "table",
    "protocol",
    "dataset",
    "setting",
    "method",
    "metric",
    "value",
    "source",
    "confidence",
)

#: Columns of :func:`figures`; ``value`` and ``std`` are fractions.
FIGURE_COLUMNS = (
    "paper",
    "table",
    "protocol",
    "dataset",
    "backbone",
    "split",
    "gallery",
    "metric",
    "method",
    "published_method",
    "published_metric",
    "setting",
    "value",
    "std",
    "obstacle",
    "source",
    "confidence",
)

#: Columns of :func:`beside`.
COLUMNS = (
    *(name for name in FIGURE_COLUMNS if name not in ("value", "std", "obstacle")),
    "published",
    "published_std",
    "ours",
    "gap",
    "seeds",
    "label",
    "rules",
    "select",
    "reason",
)

#: The sentence that zero-shot CLIP puts a class name into.
TEMPLATE = "a photo of a {}"

#: The split of a mean over all query domains or transfers.
MEAN = "mean"

PROTOCOLS: Mapping[str, str] = {
    "UCDR": "ucdr",
    "UcCDR": "uccdr",
    "UdCDR": "udcdr",
    "closed-set UDA": "uda",
    "DAZSL": "dazsl",
    "DAZSL (GZSL)": "dazsl",
}

#: Sketchy's mAP@200 belongs to the 21-class split of ECCV 2018, its mAP@all to the random 25-class split.
DATASETS: Mapping[tuple[str, str], str] = {
    ("DomainNet", "mAP@200"): "domainnet",
    ("DomainNet", "Prec@200"): "domainnet",
    ("Sketchy", "mAP@200"): "sketchy",
    ("Sketchy", "Prec@200"): "sketchy",
    ("Sketchy", "mAP@all"): "sketchy_random",
    ("Sketchy", "Prec@100"): "sketchy_random",
    ("TU-Berlin", "mAP@all"): "tuberlin",
    ("TU-Berlin", "Prec@100"): "tuberlin",
    ("Office-Home", "accuracy (%)"): "office_home",
    ("Office-Home", "average accuracy (%)"): "office_home",
    ("VisDA-2017", "accuracy (%)"): "visda",
    ("VisDA-2017", "accuracy per image (%)"): "visda",
    ("VisDA-2017", "accuracy per class (%)"): "visda",
    ("mini-DomainNet", "accuracy (%)"): "mini_domainnet",
    ("I2AwA", "accuracy"): "i2awa",
    ("I2AwA", "unseen accuracy (%) [inferred]"): "i2awa",
    ("I2AwA", "seen accuracy (%) [inferred]"): "i2awa",
    ("I2AwA", "H (%) [inferred]"): "i2awa",
    ("Office-31", "accuracy (%)"): "",
}

#: The papers divide AP@200 by the relevant images found among the 200, which is our ``[retrieved]``.
METRICS: Mapping[str, str] = {
    "mAP@200": "map@200[retrieved]",
    "Prec@200": "p@200",
    "mAP@all": "map@all",
    "Prec@100": "p@100",
    "accuracy (%)": "accuracy[image]",
    "accuracy per image (%)": "accuracy[image]",
    "accuracy per class (%)": "accuracy[class]",
    "average accuracy (%)": "accuracy[image]",
    "accuracy": "",
    "unseen accuracy (%) [inferred]": "",
    "seen accuracy (%) [inferred]": "",
    "H (%) [inferred]": "",
}

METHODS: Mapping[str, str] = {
    "Zero-shot CLIP": "zero_shot",
    "CLIP-FT": "full_finetune",
    "CoOp": "coop",
    "VPT-deep": "vpt_deep",
    "ProS": "pros",
    "UCDR-Adapter": "ucdr_adapter",
    "UCDR-Adapter: Full": "ucdr_adapter",
    "AD-CLIP": "ad_clip",
    "DAPL": "dapl",
    "CoCoOp": "cocoop",
    "MaPLe": "maple",
    "PDA": "pda",
    "CMKD": "cmkd",
    "Sketch_LVM": "sketch_lvm",
    "SRE-CLIP": "sre_clip",
    "SRE-CLIP (dev run)": "sre_clip",
    "SRE-CLIP Adapter": "sre_clip",
}

TRANSFER_DOMAINS: Mapping[str, Mapping[str, str]] = {
    "office_home": {"Ar": "art", "Cl": "clipart", "Pr": "product", "Rw": "real_world"},
    "mini_domainnet": {"C": "clipart", "P": "painting", "R": "real", "S": "sketch"},
}

#: Splits that a mean is taken over.
ALL_SPLITS: Mapping[tuple[str, str], frozenset[str]] = {
    **{
        (protocol, "domainnet"): frozenset(("clipart", "infograph", "painting", "quickdraw", "sketch"))
        for protocol in ("ucdr", "uccdr", "udcdr")
    },
    **{
        ("uda", dataset): frozenset(f"{s} to {t}" for s in names.values() for t in names.values() if s != t)
        for dataset, names in TRANSFER_DOMAINS.items()
    },
    ("uda", "visda"): frozenset(("synthetic to real",)),
}

#: The papers' backbone where a row does not name one.
PAPER_BACKBONE: Mapping[str, str] = {"ucdr": "ViT-B/32", "uccdr": "ViT-B/32", "udcdr": "ViT-B/32", "dazsl": "ViT-B/32"}

#: Data sets of ours, beside the figure's own, that hold the same images under a paper's own class list.
VARIANTS: Mapping[tuple[str, str], tuple[str, ...]] = {("ucdr_adapter", "domainnet"): ("domainnet_245",)}

GALLERIES: Mapping[str, str] = {"unseen-class gallery": "unseen", "mixed (seen+unseen) gallery": "mixed"}


class PublishedError(ValueError):
    """The file of published figures cannot be used; one line that names the place."""


@dataclass(frozen=True)
class PublishedPlace:
    """A published figure's place in this suite; ``obstacle`` is why it cannot be matched (empty if it can)."""

    backbone: str
    split: str
    gallery: str
    obstacle: str = ""


def read(path: Path = PUBLISHED) -> pd.DataFrame:
    """The file as it is, every value as text (:data:`FILE_COLUMNS`): scores, hyper-parameters, costs and claims.

    Raises :class:`PublishedError` if it is missing or has other columns.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, ValueError) as error:  # a parser error is a ValueError
        reason = " ".join(str(error).split())
        raise PublishedError(f"{path} cannot be read ({reason}): reinstall the package") from error
    if tuple(frame.columns) != FILE_COLUMNS:
        raise PublishedError(f"{path} has the columns {list(frame.columns)}, not {list(FILE_COLUMNS)}")
    return frame


def figures(path: Path = PUBLISHED) -> pd.DataFrame:
    """The published scores in this suite's terms, one row each (:data:`FIGURE_COLUMNS`), in the order of the file.

    ``value`` is a fraction; ``std`` a published standard deviation of it, where there is one. What the suite has
    no counterpart of is empty; ``obstacle`` is then why it cannot be matched.
    """
    raw: list[dict[Any, Any]] = read(path).to_dict("records")
    deviations = {
        (row["paper"], row["dataset"], row["setting"], row["method"]): _fraction(row["value"], row["metric"])
        for row in raw
        if row["metric"] == "std of average"
    }
    rows = []
    for row in raw:
        if row["protocol"] not in PROTOCOLS or row["metric"] not in METRICS:
            continue
        protocol = PROTOCOLS[row["protocol"]]
        dataset = DATASETS.get((row["dataset"], row["metric"]), "")
        place = _place(protocol, dataset, row["setting"])
        metric = METRICS[row["metric"]]
        if dataset == "visda" and place.split == MEAN and row["metric"] == "accuracy (%)":
            metric = "accuracy[class]"  # VisDA's average is over its twelve classes
        method = METHODS.get(row["method"], "")
        rows.append(
            {
                "paper": row["paper"],
                "table": row["table"],
                "protocol": protocol,
                "dataset": dataset or row["dataset"],
                "backbone": place.backbone,
                "split": place.split,
                "gallery": place.gallery,
                "metric": metric,
                "method": method,
                "published_method": row["method"],
                "published_metric": row["metric"],
                "setting": row["setting"],
                "value": _fraction(row["value"], row["metric"]),
                "std": deviations.get((row["paper"], row["dataset"], row["setting"], row["method"])),
                "obstacle": _obstacle(row["method"], method, dataset, metric, place),
                "source": row["source"],
                "confidence": row["confidence"],
            }
        )
    return pd.DataFrame(rows, columns=list(FIGURE_COLUMNS))


def beside(results: pd.DataFrame | None = None, path: Path = PUBLISHED) -> pd.DataFrame:
    """Every published score with ours beside it (:data:`COLUMNS`).

    ``results`` is a frame of :func:`benchmarks.store.frame.load_results` (None or empty: nothing was run); of a cell
    measured several times the newest record counts, arms of ablations do not. ``published``, ``ours`` and ``gap``
    (ours minus published) are fractions; ``ours`` is the mean over ``seeds`` seeds, for a mean row over all of the
    paper's splits, and blank (NaN) where there is none. A figure that several of our configurations match has a row
    for each, distinguished by ``label``, ``rules``, ``select`` and ``reason``.
    """
    rows: list[dict[str, Any]] = []
    cells: dict[Any, pd.DataFrame] = {}
    if results is not None and len(results):
        rows_in_use = current(results)
        rows_in_use = rows_in_use[~is_ablated(rows_in_use)].reindex(
            columns=[*dict.fromkeys([*rows_in_use.columns, "n_queries"])]
        )
        cells = dict(iter(rows_in_use.groupby(["method", "dataset", "protocol"], sort=False)))
    for figure in figures(path).to_dict("records"):
        published = {str(name): figure[name] for name in COLUMNS if name in figure}
        published |= {"published": figure["value"], "published_std": figure["std"]}
        datasets = (figure["dataset"], *VARIANTS.get((figure["method"], figure["dataset"]), ()))
        parts = [cells.get((figure["method"], dataset, figure["protocol"])) for dataset in datasets]
        present = [part for part in parts if part is not None]
        rows += [published | ours for ours in _ours(figure, pd.concat(present) if present else None)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def backbone_kind(name: str) -> str:
    """``ViT-B/32``, ``ViT-B/16``, ``ViT-L/14``, ``RN50`` or ``RN101`` of an OpenAI checkpoint's name or folder, "" for
    anything else.

    Known are the Hub names (``openai/clip-vit-base-patch32``, ``timm/resnet50_clip.openai``) and folders called like
    them or like OpenAI's files (``ViT-B-32``); the weights in a folder of another name are unknown.
    """
    last = name.rstrip("/").rpartition("/")[2].lower()
    sizes = {"base-patch32": "B/32", "base-patch16": "B/16", "large-patch14": "L/14"}
    short = {"vit-b-32": "B/32", "vit-b-16": "B/16", "vit-l-14": "L/14"}
    resnets = {"resnet50_clip.openai": "RN50", "rn50": "RN50", "resnet101_clip.openai": "RN101", "rn101": "RN101"}
    if last in resnets:
        return resnets[last]
    known = {f"clip-vit-{size}": kind for size, kind in sizes.items()} | short
    return f"ViT-{known[last]}" if last in known else ""


def _fraction(value: str, metric: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise PublishedError(f"published.csv: {metric} has the value {value!r}, which is no number")
    return number / 100 if number > 1 or "%" in metric or metric == "std of average" else number


def _place(protocol: str, dataset: str, text: str) -> PublishedPlace:
    """Parse the ``setting`` column."""
    if protocol == "uda":
        backbone, _, where = text.partition("; ")
        if "by value" in text:
            return PublishedPlace("", MEAN, "target", "the source does not name the backbone")
        if where == "average":
            return PublishedPlace(backbone, MEAN, "target")
        names = TRANSFER_DOMAINS.get(dataset, {})
        source, _, target = where.partition("->")
        if source in names and target in names:
            return PublishedPlace(backbone, f"{names[source]} to {names[target]}", "target")
        return PublishedPlace(backbone, "", "target", f"transfer {where!r} is not one of ours")
    backbone = PAPER_BACKBONE.get(protocol, "")
    if protocol == "dazsl":
        return PublishedPlace(backbone, "3d2 to awa2" if dataset == "i2awa" else "", "target")
    if text == "average over 5 query domains":
        return PublishedPlace(backbone, MEAN, "seen")
    if text == "sketch->photo, unseen classes":
        return PublishedPlace(backbone, "sketch", "unseen")
    if text.startswith("holdout="):
        return PublishedPlace(backbone, text.partition("=")[2], "", "the source does not name the gallery")
    match = re.fullmatch(r"query=(\w+); (.+)", text)
    if not match or match[2] not in GALLERIES:
        return PublishedPlace(backbone, "", "", f"setting {text!r} is not one of ours")
    return PublishedPlace(backbone, MEAN if match[1] == "average" else match[1], GALLERIES[match[2]])


def _obstacle(name: str, method: str, dataset: str, metric: str, place: PublishedPlace) -> str:
    """Why no record of ours can match a figure; empty if one can."""
    if not dataset:
        return "this data set is not in the suite"
    if not method:
        return "an ablation of the paper" if ": " in name else "this method is not in the suite"
    if not metric:
        return "the source does not name the metric's convention"
    if place.obstacle:
        return place.obstacle
    return ""


def _rules(figure: Mapping[Any, Any], dataset: str) -> frozenset[str]:
    """Rules under which the class split of our data set is that of the published figure.

    UDA and DAZSL: both rules show the same classes. UCDR family: the released code trains on train and validation
    classes, as our official rules do; UCDR-Adapter's on DomainNet trains on the train classes alone, as our clean rules
    do and the official rules of ``domainnet_245``. Its UdCDR sample is that of the latter alone. A method that trains
    nothing is the same under both where the gallery is.
    """
    if figure["protocol"] in ("uda", "dazsl"):
        return frozenset(("clean", "official"))
    if figure["method"] == "zero_shot" and figure["gallery"] == "unseen":
        return frozenset(("clean", "official"))
    if figure["method"] == "ucdr_adapter" and figure["dataset"] == "domainnet":
        ours = {"clean"} if figure["protocol"] != "udcdr" else set()
        return frozenset(ours | ({"official"} if dataset == "domainnet_245" else set()))
    return frozenset(("official",))


def _ours(figure: Mapping[Any, Any], cells: pd.DataFrame | None) -> Iterator[dict[str, Any]]:
    """Our results for a figure, among our rows of its method, data set and protocol; if none, a blank row."""
    if figure["obstacle"]:
        yield _blank(figure["obstacle"])
        return
    candidates, reason = _candidates(figure, cells)
    if candidates.empty:
        yield _blank(reason)
        return
    labels = row_labels(candidates)
    several = [name for name in _HASHES if candidates[name].nunique() > 1]
    refused: dict[str, None] = {}
    matched = False
    for key, part in candidates.groupby(list(_CONFIGURATION), sort=False):
        ours = part.iloc[0]
        allowed = _rules(figure, ours["dataset"])
        if ours["rules"] not in allowed:
            options = f"--rules {' or '.join(sorted(allowed))}" if allowed else "--datasets domainnet_245"
            refused[f"class split: run with {options} (ours: {ours['rules'] if allowed else ours['dataset']})"] = None
            continue
        value, seeds, reason = _value(figure, part)
        if value is None:
            refused[reason] = None
            continue
        matched = True
        hashes = [f"{name.removesuffix('_hash')} {str(ours[name])[:8]} of several" for name in several]
        count = f"{seeds} seed{'s' if seeds > 1 else ''}, {int(_queries(part)):,} queries"
        yield {
            "ours": value,
            "gap": value - figure["value"],
            "seeds": seeds,
            "label": labels[key[:3]],
            "rules": ours["rules"],
            "select": ours["select"],
            "reason": "; ".join([*_differences(figure, ours), *hashes, f"ours: {count}"]),
        }
    if not matched:
        yield _blank("; ".join(refused))


#: What distinguishes our results for one figure.
_HASHES = ("weights_hash", "identity", "data_hash", "scoring")
_CONFIGURATION = ("method", "variant", "config", "rules", "select", "backbone", "dataset", "precision", *_HASHES)


def _queries(rows: pd.DataFrame) -> float:
    """Images asked about, over all splits."""
    return float(rows.drop_duplicates("split")["n_queries"].sum())


def _blank(reason: str) -> dict[str, Any]:
    return {
        "ours": float("nan"),
        "gap": float("nan"),
        "seeds": 0,
        "label": "",
        "rules": "",
        "select": "",
        "reason": reason,
    }


def _candidates(figure: Mapping[Any, Any], cells: pd.DataFrame | None) -> tuple[pd.DataFrame, str]:
    """Those of our rows that share a figure's split, gallery, backbone and metric, and the cells beside them that have
    no score; if none has the metric, the reason."""
    none = pd.DataFrame()
    if cells is None:
        return none, "not run"
    splits = ALL_SPLITS.get((figure["protocol"], figure["dataset"]), frozenset())
    splits = splits if figure["split"] == MEAN else frozenset((figure["split"],))
    # "*" means every split or gallery: cells that could not be planned, records that cannot be read
    in_split = cells[cells["gallery"].isin((figure["gallery"], "*")) & cells["split"].isin((*splits, "*"))]
    rows = in_split[in_split["gallery"] != "*"]
    if rows.empty:
        return none, _no_score(in_split) if len(in_split) else "not run"
    rows = rows[rows["limit"].isna()]
    if "shots" in rows and len(rows):
        if (rows["shots"] != "").all():
            return none, "run with --shots only"
        rows = rows[rows["shots"] == ""]
    if rows.empty:
        return none, "run with --limit only: such scores mean nothing"
    same = rows[rows["backbone"].map(backbone_kind) == figure["backbone"]]
    if same.empty:
        others = ", ".join(sorted(set(rows["backbone"])))
        return none, f"run with another backbone ({others}), published with {figure['backbone']}"
    with_metric = same[(same["metric"] == figure["metric"]) | (same["status"] != "ok")]
    if (with_metric["status"] == "ok").any():
        return with_metric, ""
    if (same["status"] == "ok").any():
        return none, f"metric convention: no {figure['metric']} among our figures"
    return none, _no_score(same)


def _no_score(rows: pd.DataFrame) -> str:
    return f"{rows['status'].iloc[0]}: {rows['reason'].iloc[0]}"


def _value(figure: Mapping[Any, Any], rows: pd.DataFrame) -> tuple[float | None, int, str]:
    """``(mean over seeds and splits, seeds, what is missing)`` of one configuration of ours.

    There is a figure only if every seed that was run on the figure's splits has one; on all splits of a mean they must
    be the same seeds.
    """
    bad = rows[rows["status"] != "ok"]
    if len(bad):
        status, seed, split, reason = bad.iloc[0][["status", "seed", "split", "reason"]]
        return None, 0, f"{status} on {split}, seed {seed}: {reason}"
    if figure["split"] == MEAN:
        wanted = ALL_SPLITS[(figure["protocol"], figure["dataset"])]
        missing = sorted(wanted - set(rows["split"]))
        if missing:
            return None, 0, f"not run on all of the mean's splits: {', '.join(missing)} missing"
        if rows.groupby("split")["seed"].agg(frozenset).nunique() != 1:
            return None, 0, "not run with the same seeds on all of the mean's splits"
    return float(rows["value"].mean()), int(rows["seed"].nunique()), ""


#: The papers' own methods: their releases pick the model on the test set.
PAPERS = ("pros", "ucdr_adapter", "ad_clip", "sre_clip", "dapl", "pda", "cmkd", "sketch_lvm")

#: Those whose paper variant is the released code's.
AS_RELEASED = ("cmkd",)

#: Settings that a fixed number of steps makes void.
_SCHEDULE = ("epochs", "stage1_epochs", "validate_every", "patience")


def _differences(figure: Mapping[Any, Any], ours: pd.Series) -> Iterator[str]:
    """What still differs between a published figure and ours of the same question (``ours``: one of its rows)."""
    method, protocol, dataset = figure["method"], figure["protocol"], figure["dataset"]
    rules, select, trained = ours["rules"], ours["select"], method != "zero_shot"
    config = json.loads(ours["config"])
    if ours["dataset"] != dataset:
        yield f"ours on {ours['dataset']}"
    if not ours["backbone"].startswith(("openai/", "timm/")):
        yield f"weights of the folder {ours['backbone']}, taken for OpenAI's by its name"
    if steps := config.get("steps", 0):
        yield f"ours trained for {steps} steps, not on the paper's schedule"
    for name, value in paper_config(method, dataset).items():
        if config.get(name, value) != value and not (steps and name in _SCHEDULE):
            yield f"ours with {name} {config[name]}, published with {value}"
    if protocol == "uda" and method == "zero_shot" and config.get("template", TEMPLATE) != TEMPLATE:
        yield f"ours with the template {config['template']!r}"
    if method in PAPERS and method not in AS_RELEASED and not ours["variant"].startswith("official"):
        yield f"ours is the variant {ours['variant']}, not the released code's"
    if protocol in ("ucdr", "uccdr", "udcdr") and rules == "clean":
        yield "published ranks raw features by squared Euclidean distance, ours by cosine"
        inverted = registry.DATASETS.get(dataset).released.inverted
        if inverted and (trained or figure["split"] in (MEAN, *inverted)):
            yield f"published inverts the images of {' and '.join(inverted)}"
        if trained:
            yield "another draw of held-back images"
    if protocol in ("uda", "dazsl") and trained and rules == "clean":
        yield "ours trains on nine tenths of the labelled source"
    on_test = select == "oracle" or (rules == "official" and select == "val")
    if method in PAPERS and not on_test:
        yield "published picks its model on the test set, ours does not"
    elif trained and on_test and (select == "oracle" or method not in PAPERS):
        yield "ours is selected on the test set"
    if trained and method not in PAPERS:
        yield "published is another paper's run of this baseline, whose settings may differ"
    if ours["extension"]:
        yield f"ours goes beyond the method's paper: {ours['extension']}"
    if dataset == "visda" and figure["published_metric"] == "accuracy (%)":
        yield "the source does not say what it averages over: taken for the twelve classes"
    if method == "ad_clip":
        yield f"published in mixed precision (float16), ours in {ours['precision']}"
    elif ours["precision"] not in ("float32", ""):
        yield f"ours in {ours['precision']}"
    if "secondary" in figure["source"]:
        yield "the source is a secondary transcription"
