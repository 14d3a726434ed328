"""The report as one HTML file: every table, plot and image is in it, and nothing is fetched when it opens.

`render` needs neither weights nor data nor a GPU, images aside (`benchmarks.reporting.galleries`). All names pass the
template's escaping; filters work on numbers, not on names.
"""

from __future__ import annotations

import base64
import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.reporting import grids
from benchmarks.reporting.data import ReportData, SettingData
from benchmarks.reporting.grids import numbered
from benchmarks.reporting.types import Galleries, Grid, ScoreTable, Setting, SettingPlots, is_transfer, protocol_title
from benchmarks.store.files import ResultStore, files_below
from benchmarks.store.records import Record, cannot_be_read
from benchmarks.store.weights import WeightStore

ASSETS = Path(__file__).parent / "assets"


def render(
    data: ReportData,
    plots: Mapping[Setting, SettingPlots] | None = None,
    galleries: Galleries | None = None,
    folder: Path | None = None,
) -> str:
    """The page's HTML: the data, the plots of each setting and galleries of images.

    ``folder``: where it is written, for links to files of the store.
    """
    import jinja2
    from markupsafe import Markup

    def safe_json(value: Any) -> Markup:
        text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
        return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["safe_json"] = safe_json
    text = {name: (ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")}
    template = environment.get_template("page.html.jinja")
    return template.render(page=_page(data, plots or {}, galleries, folder), css=text["page.css"], js=text["page.js"])


def read_cards(store: ResultStore, kind: str, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """Cards of ``methods`` or ``datasets``, by file name; what is not a card is reported and left out."""
    cards = []

    def failed(error: OSError) -> None:
        report(f"{error.filename}: {cannot_be_read(error)}; left out")

    for path in files_below(store.root / "cards" / kind, ".json", failed):
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            report(f"{path}: {cannot_be_read(error)}; left out")
            continue
        except ValueError as error:
            report(f"{path}: cannot be read ({error}); left out")
            continue
        if isinstance(card, dict):
            cards.append({"name": path.stem} | card)
        else:
            report(f"{path}: not a card; left out")
    return cards


def _page(
    data: ReportData, plots: Mapping[Setting, SettingPlots], galleries: Galleries | None, folder: Path | None
) -> dict[str, Any]:
    problems = list(data.problems)
    records = list(data.records.values())
    methods = _cards(data.store, "methods", problems.append)
    datasets = _cards(data.store, "datasets", problems.append)
    resolved = {} if data.store is None else _resolved(data.store, problems.append)
    page: dict[str, Any] = {
        "title": _title(records),
        "summary": _summary(records),
        "command": data.command,
        "failed": _failed(records),
        "backbones": ", ".join(sorted({record.cell.backbone for record in records})),
        "settings": [
            _setting(part, plots.get(part.setting, SettingPlots()), number) for number, part in enumerate(data.settings)
        ],
        "published": [] if data.published is None else grids.published(data.published),
        "failures": grids.failures(data.current),
        "methods": grids.method_cards(methods),
        "deviations": grids.deviations(methods),
        "datasets": [*filter(None, [grids.data_used(records)]), *grids.dataset_cards(datasets)],
        "bibtex": grids.bibtex([*methods, *datasets]),
        "weights": None if data.store is None else grids.weights_grid(WeightStore(data.store.root), records, folder),
        "settings_tables": grids.settings_tables(records, resolved),
        "problems": problems,
        "galleries": [], "gallery_notes": [], "gallery_questions": [], "gallery_domains": [], "gallery_classes": [],
        "first_question": "", "images": {}, "image_side": 0,
    }  # fmt: skip
    if galleries is not None:
        page |= _galleries(galleries)
    page["sections"] = _sections(page)
    return page


def _cards(store: ResultStore | None, kind: str, report: Callable[[str], None]) -> list[dict[str, Any]]:
    return [] if store is None else read_cards(store, kind, report)


def _setting(data: SettingData, drawn: SettingPlots, number: int) -> dict[str, Any]:
    tables, comparison, setting = data.tables, data.comparison, data.setting
    protocols = numbered(table.protocol for table in tables)
    galleries = numbered(table.gallery for table in tables)
    metrics = numbered(["", *(table.metric for table in tables)])
    of_transfers = {column for table in tables if is_transfer(table.protocol) for column in table.columns}
    every = {column for table in tables for column in table.columns}
    splits = numbered(sorted(every, key=lambda split: (split in of_transfers, split)))
    kinds = numbered(plot.kind for plot in drawn.plots)
    plot_protocols = numbered(plot.protocol for plot in drawn.plots if plot.protocol)

    def filters(table: ScoreTable) -> dict[str, str]:
        metric = metrics[table.metric]
        return {
            "protocol": protocols[table.protocol], "gallery": galleries[table.gallery],
            "metric": f"{metrics['']}|{metric}" if table.leads else metric,
        }  # fmt: skip

    title = setting.title().split("; ")
    return {
        "number": str(number),
        "title": title[0] if setting.rules == "clean" else f"{title[0]}, {setting.rules} rules",
        "warnings": title[1:],
        "overview": grids.overview(tables, comparison),
        "by_protocol": [grids.by_protocol(table, comparison, filters(table)) for table in tables],
        "protocols": [(value, protocol_title(name)) for name, value in protocols.items()],
        "galleries": [(value, name) for name, value in galleries.items()],
        "metrics": [(value, name or "leading metrics") for name, value in metrics.items()],
        "first_metric": metrics[""],
        "by_domain": [
            grids.by_domain(tables, split, comparison, {"split": value}) for split, value in splits.items()
        ],
        "splits": [(value, name) for name, value in splits.items()],
        "first_split": next(iter(splits.values()), ""),
        "tests": grids.tests(tables, comparison, data.selector_picks),
        "plots": [
            {
                "title": plot.title, "caption": plot.caption, "failed": plot.failed, "source": _inline(plot.files),
                "data": {"kind": kinds[plot.kind]}
                | ({"protocol": plot_protocols[plot.protocol]} if plot.protocol else {}),
            }
            for plot in drawn.plots
        ],
        "plot_kinds": [(value, name) for name, value in kinds.items()],
        "plot_protocols": [(value, protocol_title(name)) for name, value in plot_protocols.items()],
        "plot_notes": drawn.notes,
        "ablations": [grids.ablation_grid(ablation) for ablation in data.ablations],
        "errors": _errors(data),
        "cost": grids.cost_grid(data.costs),
        "extensions": grids.extensions(data.extensions),
    }  # fmt: skip


def _errors(data: SettingData) -> list[Grid]:
    """Tables of errors; none for a limited run, whose scores mean nothing."""
    if data.setting.limit is not None:
        return []
    return grids.error_grids(data.errors.questions, data.errors.wordnet)


def _galleries(galleries: Galleries) -> dict[str, Any]:
    questions = numbered(query.title for query in galleries.queries)
    domains = numbered(sorted({query.domain for query in galleries.queries}))
    classes = numbered(sorted({query.class_name for query in galleries.queries}))
    images = numbered(galleries.images)
    return {
        "galleries": [
            {
                "question": questions[query.title], "title": query.title, "domain": domains[query.domain],
                "class": classes[query.class_name], "domain_name": query.domain, "class_name": query.class_name,
                "image": images[query.key],
                "rows": [
                    {
                        "label": row.label, "method": row.method, "score": grids.percent(row.score),
                        "hits": [
                            {"image": images[hit.key], "right": hit.right, "class_name": hit.class_name}
                            for hit in row.hits
                        ],
                    }
                    for row in query.rows
                ],
            }
            for query in galleries.queries
        ],
        "gallery_notes": galleries.notes,
        "gallery_questions": [(value, name) for name, value in questions.items()],
        "gallery_domains": [(value, name) for name, value in domains.items()],
        "gallery_classes": [(value, name) for name, value in classes.items()],
        "first_question": next(iter(questions.values()), ""),
        "images": {value: galleries.images[key] for key, value in images.items()},
        "image_side": galleries.side,
    }  # fmt: skip


def _sections(page: Mapping[str, Any]) -> list[tuple[str, str]]:
    first = page["settings"][0] if page["settings"] else {}
    sections = [
        ("overview", "Overview", bool(first)), ("protocols", "Protocols", bool(first)),
        ("domains", "Domains", bool(first)), ("tests", "Tests", bool(first.get("tests"))),
        ("plots", "Plots", bool(first.get("plots"))), ("ablations", "Ablations", bool(first.get("ablations"))),
        ("errors", "Errors", bool(first.get("errors"))), ("cost", "Cost", bool(first)),
        ("galleries", "Galleries", bool(page["galleries"])), ("published", "Published", bool(page["published"])),
        ("failures", "Failures", True), ("cards", "Methods", True),
        ("deviations", "Paper and code", page["deviations"] is not None), ("datasets", "Data", True),
        ("bibtex", "BibTeX", bool(page["bibtex"])), ("weights", "Weights", page["weights"] is not None),
        ("settings", "Settings", True),
        ("problems", "Problems", bool(page["problems"])),
    ]  # fmt: skip
    return [(anchor, text) for anchor, text, there in sections if there]


def _title(records: Sequence[Record]) -> str:
    names = list(dict.fromkeys(record.cell.dataset for record in records))
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _summary(records: Sequence[Record]) -> str:
    def some(count: int, name: str, names: str = "") -> str:
        return f"{count} {name if count == 1 else names or name + 's'}"

    count = functools.partial(_distinct, records)
    latest = max((record.created for record in records), default="")[:10]
    parts = [
        some(count("method"), "method"), some(count("protocol"), "protocol"), some(count("dataset"), "data set"),
        some(count("backbone"), "backbone"), some(count("seed"), "seed"), some(len(records), "cell"),
    ]  # fmt: skip
    return ", ".join(parts) + (f"; last record of {latest}" if latest else "")


def _distinct(records: Sequence[Record], name: str) -> int:
    return len({getattr(record.cell, name) for record in records})


def _failed(records: Sequence[Record]) -> str:
    words = {"failed": "failed", "skipped": "were skipped"}
    parts = []
    for status, word in words.items():
        n = sum(record.status == status for record in records)
        if n:
            parts.append(f"{n} of {len(records)} cells {word}")
    return "; ".join(parts) + "." if parts else ""


def _resolved(store: ResultStore, report: Callable[[str], None]) -> dict[str, Any]:
    path = store.root / "resolved.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        report(f"{path}: {cannot_be_read(error)}; left out")
        return {}
    except ValueError as error:
        report(f"{path}: cannot be read ({error}); left out")
        return {}
    return data if isinstance(data, dict) else {}


def _inline(files: Sequence[Path]) -> str:
    """A plot as a data URI: its PNG, stored smaller without loss; the SVG is beside the page."""
    from PIL import Image

    file = next((query for query in files if query.suffix == ".png"), None)
    if file is None:
        return ""
    buffer = io.BytesIO()
    with Image.open(file) as image:
        image.convert("RGB").save(buffer, "WEBP", lossless=True, method=2)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
