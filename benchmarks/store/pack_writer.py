"""Writes a result store as a pack, in the form that :mod:`benchmarks.store.packed` reads."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.console import counted
from benchmarks.store.files import (
    ResultStore,
    files_below,
    is_file,
    is_temporary,
    safe_name,
    temporary_name,
    write_atomically,
)
from benchmarks.store.packed import (
    MANIFEST,
    NOTE,
    PER_QUERY,
    RECORDS,
    SCALE,
    SCALED,
    Manifest,
    Pack,
    PackError,
    is_pack,
    open_pack,
    scaled,
    type_name,
    type_of,
)
from benchmarks.store.records import Record, RecordError, cannot_be_read
from benchmarks.store.weights import CARD, FIT, FOLDER, WeightStore

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

#: Queries of each split and gallery whose best gallery images a lean pack keeps.
TOP = 40

#: Per-query columns that a lean pack keeps whatever metrics lead the tables, where a record has them.
KEPT = ("ap@all", "recall@1", "credit")

#: The lists of best gallery images (or best classes) of a query.
LISTS = ("top_keys", "top_scores")


def write_pack(
    store: ResultStore,
    out: Path,
    *,
    form: str = "lean",
    top: int = TOP,
    weights: bool = False,
    replace: bool = False,
    report: Callable[[str], None] | None = None,
) -> Manifest:
    """Write everything readable in ``store`` as a pack into the folder ``out``; the same records give the same bytes.

    With ``weights``, the kept weights of fits are copied as they are; without, those in ``out`` are removed.
    The pack is first written whole into a temporary folder inside ``out`` and then moved into place, the manifest last:
    a writer that fails leaves the pack that was there. Files of ``out`` that no pack holds stay.

    A pack that was there is replaced if the new one has all that it holds. With ``replace`` it is replaced whatever it
    holds, and ``report`` gets a line that says what it was.

    Raises :class:`PackError` if there is no record, if ``out`` is the store's own folder, has loose records (they would
    hide the pack), other files and no pack, or a pack that must not be replaced, or if the store is itself a lean pack
    without the values that are requested.
    """
    _check(store, out, form, top)
    former = _former(out)
    records = {store.name(record.cell, record.key): record for record in store.records()}
    if not records:
        raise PackError(f"{store.root} has no readable record; run `python -m benchmarks.run --out {store.root}` first")
    searches = dict(store.searches())
    fits = _fits(store.root) if weights else []
    if former is not None and not replace:
        _check_lost(former, out, store, {*records, *searches}, fits, form)
    shown = _lowest_seeds(records) if form == "lean" else {}
    columns: dict[str, str] = {}
    blocks = _Blocks()
    for name, record in records.items():
        if record.per_query is None:
            continue
        table = store.per_query_table(record)
        if form == "lean":
            table = _lean(table, record, top if shown[name] else 0)
        table, columns[name] = _known_types(table, name)
        blocks.add((record.cell.dataset, record.cell.protocol, record.cell.split), name, table)
    note: dict[str, Any] = {
        "form": form,
        "top": top if form == "lean" else None,
        "rounding": 1 / SCALE if form == "lean" else 0.0,
    }
    texts = {name: record.to_json() for name, record in records.items()} | searches
    data = {
        PER_QUERY: _per_query_file(blocks, form, note),
        RECORDS: _records_file(texts, columns, note),
    }
    files = {name: hashlib.sha256(content).hexdigest() for name, content in data.items()}
    rows = sum(record.per_query.rows for record in records.values() if record.per_query)
    manifest = Manifest(**note, records=len(records), searches=len(searches), rows=rows, files=files)
    data[MANIFEST] = (json.dumps(dataclasses.asdict(manifest), indent=1) + "\n").encode()
    copied = [*_cards(store.root), *(name for fit in fits for name in _fit_files(store.root, fit))]
    _write(out, store.root, data, copied, _own_files(former, out))
    if replace and former is not None and report is not None:
        what = (
            "a damaged pack" if isinstance(former, PackError) else f"a pack of {counted(len(former.records), 'record')}"
        )
        report(f"{out}: replaces {what}")
    return manifest


def sample(queries: Sequence[str], classes: Sequence[str], galleries: Sequence[str], top: int) -> np.ndarray:
    """Which rows are among the ``top`` sampled queries of their gallery, bool ``[rows]``.

    The sample follows from the names alone (classes, and queries within a class, in the order of their sha256), so it
    is the same under every method. Each class gives one query before any gives a second; a smaller ``top`` takes part
    of the queries that a larger one takes.
    """
    import numpy as np

    digests = {name: hashlib.sha256(name.encode()).digest() for name in {*queries, *classes}}
    rows = sorted(range(len(queries)), key=lambda row: (digests[queries[row]], row))
    turn: dict[tuple[str, str], int] = {}
    order: dict[str, list[tuple[int, bytes, int]]] = {}
    for row in rows:
        place = turn[galleries[row], classes[row]] = turn.get((galleries[row], classes[row]), -1) + 1
        order.setdefault(galleries[row], []).append((place, digests[classes[row]], row))
    taken = np.zeros(len(queries), bool)
    for places in order.values():
        taken[[row for _, _, row in sorted(places)[:top]]] = True
    return taken


def headline_columns(record: Record) -> set[str]:
    """Per-query columns behind the metrics that lead a record's tables: ``map@200[trec]`` is ``ap@200[trec]``."""
    metrics = {metric for names in record.galleries.values() for metric in names}
    return {metric[1:] if metric.startswith("map@") else metric for metric in metrics}


def _check(store: ResultStore, out: Path, form: str, top: int) -> None:
    try:
        store.check()
    except OSError as error:
        raise PackError(str(error)) from error
    if out.resolve() == store.root.resolve():
        raise PackError(f"{out}: a folder cannot be packed into itself; name another with --out")
    for kind in ("cells", "searches"):
        if (out / kind).exists():
            raise PackError(f"{out}: has loose records in {kind}/, which would hide the pack; name another folder")
    source = open_pack(store.root)
    if source is not None and source.manifest.form == "lean":
        if form == "full":
            raise PackError(f"{store.root} is a lean pack, its values are rounded; pack the run's own records for full")
        if top > (source.manifest.top or 0):
            raise PackError(
                f"{store.root} is a lean pack with --top {source.manifest.top}; --top {top} needs the run's own records"
            )


def _former(out: Path) -> Pack | PackError | None:
    """The pack in ``out``, what is wrong with it, or None for a new or empty folder; raises for a folder of others."""
    if not out.exists() and not out.is_symlink():
        return None
    if not out.is_dir():
        raise PackError(f"--out {out}: is not a folder; name a new or empty folder")
    try:
        there = sorted(name for name in os.listdir(out) if not is_temporary(name))  # noqa: PTH208 - names only
    except OSError as error:
        raise PackError(f"--out {out}: {cannot_be_read(error)}") from error
    if not there:
        return None
    if not is_pack(out):
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise PackError(f"--out {out}: holds {there[0]}{more} and no readable pack; name a new or empty folder")
    try:
        return open_pack(out)
    except PackError as error:
        return error


def _check_lost(
    former: Pack | PackError, out: Path, store: ResultStore, names: Collection[str], fits: Sequence[Path], form: str
) -> None:
    """Raise :class:`PackError` if the new pack would lack something that the one in ``out`` holds."""
    mend = "name another folder, or replace it with --replace"
    if isinstance(former, PackError):
        raise PackError(f"--out {out}: holds a pack that cannot be read ({former}); {mend}")
    keys = {_key(name) for name in names}
    records, searches = (sum(_key(name) not in keys for name in held) for held in (former.records, former.searches))
    weights = sum(kept.folder.relative_to(out) not in fits for kept in WeightStore(out).all())
    lost = [counted(records, "record")] if records else []
    lost += [counted(searches, "search")] if searches else []
    lost += [f"weights of {counted(weights, 'fit')}"] if weights else []
    if lost:
        hint = " (--weights takes those that it has)" if weights and not fits else ""
        raise PackError(
            f"--out {out}: holds a pack with {', '.join(lost)} that {store.root} would not give{hint}; {mend}"
        )
    if former.manifest.form == "full" and form == "lean":
        raise PackError(
            f"--out {out}: holds a full pack, whose exact values a lean one lacks; take --per-query full, {mend}"
        )


def _key(name: str) -> str:
    """The key of a record or search, given its path in a loose store."""
    return name.rpartition("-")[2]


def _lowest_seeds(records: dict[str, Record]) -> dict[str, bool]:
    """Whether a record has the lowest seed of those with per-query values that differ in nothing else."""
    lowest: dict[str, int] = {}
    groups = {}
    for name, record in records.items():
        if record.per_query is None:
            continue
        groups[name] = json.dumps({**dataclasses.asdict(record.cell), "seed": None}, sort_keys=True)
        lowest[groups[name]] = min(record.cell.seed, lowest.get(groups[name], record.cell.seed))
    return {name: records[name].cell.seed == lowest[group] for name, group in groups.items()}


def _lean(table: pa.Table, record: Record, top: int) -> pa.Table:
    """The part of a record's table that a lean pack keeps, not yet rounded."""
    import numpy as np
    import pyarrow as pa

    wanted = {*KEPT, *headline_columns(record)}
    kept = [
        field.name
        for field in table.schema
        if field.name in (*LISTS, "n_relevant")
        or field.name in wanted
        or not (pa.types.is_floating(field.type) or pa.types.is_nested(field.type))
    ]
    table = table.select(kept)
    queries, classes, galleries = (
        [str(value) for value in table[name].to_pylist()] if name in kept else [""] * len(table)
        for name in ("query", "class", "gallery")
    )
    rows = np.arange(len(table))
    taken = sample(queries, classes, galleries, top) if top else np.zeros(len(rows), bool)
    places = pa.array(rows, mask=~taken)
    for name in LISTS:
        if name in kept:
            table = table.set_column(kept.index(name), name, table[name].take(places))
    return table


def _known_types(table: pa.Table, name: str) -> tuple[pa.Table, str]:
    """A record's table with columns of the types that a pack supports, and these as JSON: name and type, in order."""
    import pyarrow as pa

    types, fields = [], []
    for field in table.schema:
        kind = type_name(field.type)
        try:
            known = type_of(kind)
        except ValueError:
            known = None
        if known is None or field.name == "record":
            raise PackError(f"{name}: a pack cannot hold the per-query column {field.name!r} ({kind})")
        types.append([field.name, kind])
        fields.append(pa.field(field.name, known))
    return table.cast(pa.schema(fields)), json.dumps(types, ensure_ascii=False)


class _Blocks:
    """Groups the tables of records that have the same queries in the same order."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, ...], list[tuple[pa.Table, list[str], list[pa.Table]]]] = {}

    def add(self, place: tuple[str, ...], name: str, table: pa.Table) -> None:
        import pyarrow as pa

        queries = table.select(
            [f.name for f in table.schema if not (pa.types.is_floating(f.type) or pa.types.is_nested(f.type))]
        )
        blocks = self._blocks.setdefault(place, [])
        for known, names, tables in blocks:
            if known.equals(queries):
                names.append(name)
                tables.append(table)
                return
        blocks.append((queries, [name], [table]))

    def table(self) -> pa.Table:
        """All rows: blocks in order, in a block the first row of each record, the second of each, and so on."""
        import numpy as np
        import pyarrow as pa

        every = [block for _, blocks in sorted(self._blocks.items()) for block in blocks]
        if not every:
            return pa.table({"record": pa.array([], pa.string()).dictionary_encode()})
        names: list[str] = []
        codes: list[np.ndarray] = []
        parts: list[pa.Table] = []
        for queries, members, tables in every:
            turns = np.arange(len(members) * len(queries)).reshape(len(members), len(queries)).T.ravel()
            parts.append(pa.concat_tables(tables, promote_options="permissive").take(pa.array(turns)))
            codes.append(np.tile(np.arange(len(members), dtype=np.int32) + len(names), len(queries)))
            names += members
        try:
            table = pa.concat_tables(parts, promote_options="permissive").combine_chunks()
        except pa.ArrowException as error:
            text = " ".join(str(error).split())
            raise PackError(
                f"per-query columns of these records have types that do not fit together ({text})"
            ) from error
        record = pa.DictionaryArray.from_arrays(pa.array(np.concatenate(codes)), pa.array(names))
        return table.add_column(0, "record", record)


def _per_query_file(blocks: _Blocks, form: str, note: dict[str, Any]) -> bytes:
    import pyarrow as pa

    table = blocks.table()
    if form == "lean":
        for place, field in enumerate(table.schema):
            number = field.type.value_type if pa.types.is_list(field.type) else field.type
            if not pa.types.is_floating(number) or field.name == "n_relevant":
                continue
            column = table[field.name]
            whole = scaled(pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], field.type))
            if whole is not None:
                table = table.set_column(place, field.name + SCALED, whole)
    return _parquet(table, note)


def _records_file(texts: dict[str, str], columns: dict[str, str], note: dict[str, Any]) -> bytes:
    import pyarrow as pa

    names = list(texts)
    made = {"path": names, "json": list(texts.values()), "columns": [columns.get(name, "") for name in names]}
    return _parquet(pa.table({name: pa.array(values, pa.string()) for name, values in made.items()}), note)


def _parquet(table: pa.Table, note: dict[str, Any]) -> bytes:
    """A table as Parquet: numbers split into byte planes, texts of per-query tables as dictionaries, zstd."""
    import pyarrow as pa
    from pyarrow import parquet

    planes, words = [], []
    for field in table.schema:
        listed = pa.types.is_list(field.type)
        path = f"{field.name}.list.element" if listed else field.name
        kind = field.type.value_type if listed else field.type
        if pa.types.is_floating(kind) or pa.types.is_integer(kind):
            planes.append(path)
        elif field.name != "json":
            words.append(path)
    buffer = io.BytesIO()
    table = table.replace_schema_metadata({NOTE: json.dumps(note)})
    parquet.write_table(
        table,
        buffer,
        compression="zstd",
        compression_level=19,
        use_dictionary=words,
        use_byte_stream_split=planes,
        dictionary_pagesize_limit=64 * 2**20,
        data_page_size=64 * 2**20,
        write_statistics=False,
    )
    return buffer.getvalue()


def _fits(root: Path) -> list[Path]:
    """Folders of weights below a store, in a fixed order; names that begin with a dot are of writers at work."""
    folders = [fit for dataset in _children(root / FOLDER) for fit in _children(dataset)]
    return [fit.relative_to(root) for fit in folders if fit / FIT in _children(fit)]


def _fit_files(root: Path, fit: Path) -> list[Path]:
    """The files of a folder of weights; last the one that makes the weights known."""
    files = [path.relative_to(root) for path in _children(root / fit) if not path.is_dir()]
    return sorted(files, key=lambda name: (name.name == FIT, name))


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise PackError(f"{folder}: {cannot_be_read(error)}") from error


def _cards(root: Path) -> list[Path]:
    """Cards and ``resolved.json`` of a store."""

    def failed(error: OSError) -> None:
        raise PackError(f"{error.filename}: {cannot_be_read(error)}") from error

    found = [*files_below(root / "cards", ".json", failed), root / "resolved.json"]
    return [path.relative_to(root) for path in found if is_file(path)]


def _own_files(former: Pack | PackError | None, out: Path) -> set[Path]:
    """Files in ``out`` of the pack there: its three, cards that its records name, weights with a valid ``fit.json``."""
    if former is None:
        return set()
    own = {Path(name) for name in (MANIFEST, RECORDS, PER_QUERY, "resolved.json")}
    for text in former.records.values() if isinstance(former, Pack) else ():
        with contextlib.suppress(RecordError):
            cell = Record.from_json(text).cell
            own |= {
                Path("cards", kind, f"{safe_name(name)}.json")
                for kind, name in (("methods", cell.method), ("datasets", cell.dataset))
            }
    for kept in WeightStore(out).all():
        names = {name for name in kept.files if Path(name).name == name}  # a damaged one may name files elsewhere
        if not kept.folder.is_symlink():
            own |= {kept.folder.relative_to(out) / name for name in (*names, FIT, CARD)}
    return {name for name in own if is_file(out / name)}


def _write(out: Path, source: Path, data: dict[str, bytes], copied: Sequence[Path], own: Collection[Path]) -> None:
    """Write ``data`` and copies of files of ``source`` into ``out``, all or nothing, in place of ``own``."""
    new = not out.exists()
    ResultStore(out).clean()
    temporary = temporary_name(out / "pack")
    names = [*copied, *map(Path, data)]
    try:
        for name in copied:
            try:
                content = (source / name).read_bytes()
            except OSError as error:
                raise PackError(f"{source / name}: {cannot_be_read(error)}") from error
            write_atomically(temporary / "new" / name, content)
        for text, content in data.items():
            write_atomically(temporary / "new" / text, content)
        _swap(temporary, out, [*sorted({*own} - {*names}), *names])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        folders = {folder for name in (*names, *own) for folder in name.parents} - {Path()}
        for folder in [*sorted(folders, reverse=True), *([Path()] if new else [])]:
            with contextlib.suppress(OSError):  # not empty
                (out / folder).rmdir()


def _swap(temporary: Path, out: Path, names: Sequence[Path]) -> None:
    """Move files of ``out`` to ``temporary/before`` and those of ``temporary/new`` to ``out``, or change nothing."""
    done: list[tuple[Path, Path]] = []

    def move(file: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
        done.append((file, target))

    try:
        for name in names:
            place, made = out / name, temporary / "new" / name
            if place.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
            if place.exists() or place.is_symlink():
                move(place, temporary / "before" / name)
            if made.exists():
                move(made, place)
    except BaseException:
        for file, target in reversed(done):
            target.replace(file)
        raise
