"""Carry out one fit group in one process: fit once, encode each image once a model, rank, hand over the records.

Whatever goes wrong in a cell becomes that cell's record (status, reason, traceback) and the sweep goes on. Which group
runs where and when is an executor's business (:mod:`benchmarks.runner.executors`); :func:`execute` is the door to them.
"""

from __future__ import annotations

import dataclasses
import datetime
import gc
import hashlib
import itertools
import math
import os
import random
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.datasets.image_cache import cache_folder
from benchmarks.datasets.pixels import PixelCache
from benchmarks.evaluation.classification import ClassificationScores, classify, classify_zero_shot
from benchmarks.evaluation.ranking import RULES, RetrievalScores, rank
from benchmarks.protocols.task import Classification, Retrieval, Task
from benchmarks.protocols.training import Question, training_data
from benchmarks.runner.environment import PeakMemory, environment
from benchmarks.runner.plan import Cell, FitGroup, Plan, describe, unvalidated
from benchmarks.runner.resources import Resources
from benchmarks.runner.settings import SettingsError
from benchmarks.store.files import ResultStore
from benchmarks.store.records import CellId, Cost, Fit, GalleryScores, Record, Search, Status, content_key
from methods.interface import FitReport, Method, NotApplicableError, TrainingData, unit_length
from methods.parts.feature_cache import one_thread_a_batch, side_by_side
from methods.parts.parallel import fail_together
from methods.parts.row_files import RowFiles
from methods.registry import METHODS
from methods.training.loop import check_processes

#: Images encoded at once. Every batch has this size (the last is filled up) and on a CPU is computed by one thread,
#: several batches side by side: an image's embedding is equal to the bit whatever the number of threads and whichever
#: other images a run, or a resumed part of it, needed.
BATCH = 64

#: Images encoded between two writes to files: all that a killed process loses.
CHUNK = 64 * BATCH

#: Embeddings of a data set that take more bytes than this lie in files, not in memory.
LARGE = 1 << 28

#: No embedding is expected to be wider; smaller data sets are not prepared for files.
MAX_WIDTH = 4096

#: Logits held at a time (64 MiB).
LOGITS = 1 << 24

#: Seed of the trainings that pick a learning rate, whatever the seeds of the run: all seeds of a method and training
#: data then have the rate that one search picked.
SEARCH_SEED = 0

#: Best gallery images kept for each query.
TOP = 10


class Progress(Protocol):
    """What a run tells whoever watches."""

    def cell(self, cell: CellId, status: str, reason: str = "") -> None:
        """A cell is done (``status`` as in the record, or ``cached``)."""

    def fitting(self, group: FitGroup) -> None:
        """A model is about to be fitted."""

    def log(self, **numbers: Any) -> None:
        """Numbers from inside ``fit``."""

    def images(self, count: int) -> None:
        """Images were encoded."""


@dataclass
class Outcome:
    """Number of cells by status; ``cached`` ones were finished before and not run again."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, status: str) -> None:
        """Count one cell."""
        self.counts[status] = self.counts.get(status, 0) + 1

    @property
    def failed(self) -> int:
        """Cells that failed."""
        return self.counts.get("failed", 0)


class FailFast(Exception):  # noqa: N818 - not an error: it ends a run that was told to stop at the first failure
    """The first failure under ``--fail-fast``."""


def execute(plan: Plan, resources: Resources, store: ResultStore, progress: Progress) -> Outcome:
    """Run every cell of the plan that has no finished record (``--force``: every cell), as the settings say where.

    A kill or Ctrl-C at any moment leaves only whole records behind; the same command then goes on where it stopped.
    No score depends on the executor; on a CPU the last digits depend on ``threads``, which each record names.
    """
    from benchmarks.runner.executors import EXECUTORS

    settings = resources.settings
    name = settings.executor if settings.executor != "local" else "processes" if settings.jobs > 1 else "serial"
    try:
        executor = EXECUTORS.get(name)
    except ImportError as error:
        raise SettingsError(f"--executor {name}: {error}") from error
    outcome = executor(plan, resources, store, progress)
    if not isinstance(outcome, Outcome):
        raise SettingsError(
            f"--executor {name}: it gave {type(outcome).__name__}, not benchmarks.runner.execution.Outcome"
        )
    return outcome


def prepare_process(threads: int) -> None:
    """Threads (0: as they are), determinism and arithmetic of this process, for good: for processes that end with the
    run (workers, actors, commands); :func:`prepared_process` is for all others.

    On a GPU, float32 products and convolutions are done in float32, not in TF32 (each record says so). Operations
    without a deterministic kernel warn; attention, the one such in use, gets one in training
    (:func:`methods.training.loop.training_attention`).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would write to memory that is only reserved.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@contextmanager
def prepared_process(threads: int) -> Iterator[None]:
    """A block under :func:`prepare_process`; afterwards, however it ends, the process is as it was before.

    For work in a process that is not the run's own (a notebook, a script, a test). The states of Python's, numpy's and
    torch's global generators, which every fit seeds, are put back too.
    """
    cublas, count = os.environ.get("CUBLAS_WORKSPACE_CONFIG"), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    rounded = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        prepare_process(threads)
        yield
    finally:
        if cublas is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        torch.set_num_threads(count)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = rounded
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class EncodedImages:
    """Retrieval embeddings of a data set's images under one method; each image is encoded when first needed.

    With a ``folder``, embeddings that take more than :data:`LARGE` bytes lie in memory-mapped files there, and those
    that an earlier process left are used. ``seconds`` is the time spent in the method, ``count`` the images that went
    through it (fillers included). ``device`` is the method's: on a CPU with several threads, each computes a batch of
    its own.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        pixels: PixelCache,
        on_images: Callable[[int], None],
        folder: Path | None = None,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        self._encode = encode
        self._device = torch.device(device)
        self.pixels = pixels
        self._on_images = on_images
        total = len(pixels.dataset.table)
        self._files = None if folder is None else RowFiles(folder, total)
        self._known = np.zeros(total, dtype=bool) if self._files is None else self._files.filled
        self._kept: Tensor | None = None
        self.count = 0
        self.seconds = 0.0

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        """Embeddings ``[len(rows), D]`` of table rows, float32 on the CPU."""
        self.encode(rows)
        if self._kept is None:
            assert self._files is not None
            return self._files.tensors()["embedding"][torch.from_numpy(rows)]
        return self._kept[torch.from_numpy(rows)]

    def encode(self, rows: np.ndarray) -> None:
        """Encode those of the table rows that are not encoded yet."""
        missing = np.unique(rows[~self._known[rows]])
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            self._keep(chunk, torch.cat(list(self._in_batches(chunk))))
            self._known[chunk] = True

    def discard(self) -> None:
        """Delete the files, if there are any."""
        if self._files is not None:
            self._files.remove()

    def _in_batches(self, rows: np.ndarray) -> Iterator[Tensor]:
        batches = (
            (self._pixels(rows[at : at + BATCH]), len(rows[at : at + BATCH])) for at in range(0, len(rows), BATCH)
        )
        with one_thread_a_batch(self._device) as count:
            for pixels, wanted in itertools.islice(batches, int(self.count == 0)):
                yield self._done(*self._run(pixels, wanted), 1)  # what a method keeps from its first call is kept once
            if count == 1:
                yield from (self._done(*self._run(pixels, wanted), 1) for pixels, wanted in batches)
            else:
                yield from (self._done(*one, count) for one in side_by_side(count, self._run, batches))

    def _pixels(self, batch: np.ndarray) -> Tensor:
        return self.pixels[np.concatenate([batch, np.repeat(batch[-1:], BATCH - len(batch))])]

    @torch.no_grad()  # here, since it holds for one thread
    def _run(self, pixels: Tensor, wanted: int) -> tuple[Tensor, float]:
        """Embeddings of the first ``wanted`` images of a batch, and the seconds that the batch took."""
        begun = time.perf_counter()
        embeddings = self._encode(pixels).float().cpu()
        seconds = time.perf_counter() - begun
        if embeddings.shape[0] != BATCH or embeddings.ndim != 2:
            raise ValueError(f"embeddings of {BATCH} images have shape {tuple(embeddings.shape)}, not [{BATCH}, D]")
        return embeddings[:wanted], seconds

    def _done(self, embeddings: Tensor, seconds: float, count: int) -> Tensor:
        """Count a batch; ``count`` batches were computed at a time."""
        self.seconds += seconds / count
        self.count += BATCH
        self._on_images(len(embeddings))
        return embeddings

    def _keep(self, rows: np.ndarray, embeddings: Tensor) -> None:
        total, width = len(self._known), embeddings.shape[1]
        if self._kept is None and self._files is not None and (self._files.begun or 4 * total * width > LARGE):
            try:
                self._files.write(rows, {"embedding": embeddings})
                return
            except OSError as error:
                what = f"embeddings cannot be kept in {self._files.folder} ({error.strerror or error})"
                warnings.warn(f"{what}: they are held in memory", RuntimeWarning, stacklevel=4)
        if self._kept is None:
            self._kept = torch.empty(total, width)  # the system gives memory to the rows that are used
            if self._files is not None and self._files.begun:
                known = torch.from_numpy(np.flatnonzero(self._known))
                self._kept[known] = self._files.tensors()["embedding"][known]
        self._kept[torch.from_numpy(rows)] = embeddings


def encode_as(method: Method, rules: str) -> Callable[[Tensor], Tensor]:
    """The call whose output is ranked: raw features under the official rules."""
    return method.encode_raw if rules == "official" else method.encode_images


def embedding_folder(group: FitGroup, method: Method, pixels: PixelCache) -> Path | None:
    """Where a fitted model's embeddings lie if they are many: named by all that determines them.

    That is what was fitted on what (the cell's inputs), what came of it (the learned tensors) and the images; for a
    method that is not trained, the training data do not count. None where ``UCDR_BENCH_CACHE`` is off.
    """
    root = cache_folder()
    if root is None or 4 * len(pixels.dataset.table) <= LARGE // MAX_WIDTH:
        return None
    inputs = group.cells[0].inputs
    digest = hashlib.sha256()
    for name, tensor in sorted(method.tensors().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for image in pixels.dataset.content:
        digest.update(image.encode())
    facts = {name: inputs[name] for name in ("scoring", "method", "backbone", "dataset", "select", "seed")}
    facts |= {"rules": inputs["task"]["rules"], "fit_id": group.fit_id if method.trained else ""}
    facts |= {"size": pixels.size, "device": method.device.type, "model and pictures": digest.hexdigest()}
    return root / "embeddings" / content_key(facts)


def score_retrieval(
    method: Method, encoded: EncodedImages, retrieval: Retrieval, rules: str, *, ks: tuple[int, ...], top: int = 0
) -> RetrievalScores:
    """Rank a retrieval's gallery for each query under the rules; clean rules take the method's own similarity."""
    labels = encoded.pixels.dataset.table["class"].to_numpy()
    options = dict(RULES[rules])
    if rules == "clean":
        options["similarity"] = method.card.similarity
    return rank(
        encoded[retrieval.query],
        encoded[retrieval.gallery],
        labels[retrieval.query],
        labels[retrieval.gallery],
        ks=ks,
        top=top,
        **options,
    )


@dataclass(frozen=True)
class Answers:
    """What a method answered to a classification: the accuracy, and of each image the classes ``best_classes [B, k]``
    with the highest logits ``best_logits [B, k]``, best first."""

    scores: ClassificationScores
    best_classes: Tensor
    best_logits: Tensor


def score_classification(
    method: Method, encoded: EncodedImages, question: Classification, rules: str, *, top: int = 0
) -> Answers:
    """Accuracy of a method's answers, and the ``top`` best classes of each image.

    The logits of all images and classes are never held together, only :data:`LOGITS` of them at a time.
    """
    number_of = {name: number for number, name in enumerate(question.class_names)}
    of_image = encoded.pixels.dataset.table["class"].to_numpy()[question.rows]
    labels = np.array([number_of[name] for name in of_image], dtype=np.int64)
    best: list[tuple[Tensor, Tensor]] = []

    def blocks() -> Iterator[Tensor]:
        for logits in class_logits(method, encoded, question, rules):
            values, classes = logits.topk(min(top, logits.shape[1]), dim=1)
            best.append((classes, values))
            yield logits

    if question.seen is None:
        scores = classify(blocks(), labels)
    else:
        scores = classify_zero_shot(blocks(), labels, [number_of[name] for name in question.seen])
    return Answers(scores, *(torch.cat(part) for part in zip(*best, strict=True)))


def class_logits(method: Method, encoded: EncodedImages, question: Classification, rules: str) -> Iterator[Tensor]:
    """Logits ``[images, classes]`` of a question, float32 on the CPU, in blocks of images.

    A method that classifies as :class:`Method` does (cosine to the class embedding) has its names embedded once and its
    images taken from ``encoded``; one with its own ``classify`` is asked batch by batch.
    """
    names, rows = question.class_names, question.rows
    with torch.no_grad():
        if type(method).classify is Method.classify and rules == "clean":
            encoded.encode(rows)
            classes = unit_length(method.encode_classes(names).float().cpu()).T
            # about equally many images in each block: one left over alone would be rounded otherwise
            for block in np.array_split(rows, math.ceil(len(rows) * len(names) / LOGITS)):
                images = torch.nn.functional.normalize(encoded[block], dim=-1)
                yield method.logit_scale() * images @ classes
            return
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            pixels, begun = encoded.pixels[batch], time.perf_counter()
            logits = method.classify(pixels, names).float().cpu()
            encoded.seconds += time.perf_counter() - begun
            encoded.count += len(batch)
            if logits.shape != (len(batch), len(names)):
                wanted = [len(batch), len(names)]
                raise ValueError(f"logits of {len(batch)} images have shape {tuple(logits.shape)}, not {wanted}")
            yield logits


@dataclass(frozen=True)
class _Trained:
    method: Method
    report: FitReport
    seconds: float
    logged: list[dict[str, Any]]


@dataclass
class _Fitted:
    method: Method
    report: FitReport
    logged: list[dict[str, Any]]
    search: Search
    encoded: EncodedImages
    seconds: float
    peak_mib: float
    peak_gpu_mib: float | None


#: Takes a cell's record and its per-query values (None where there are no scores).
KeepRecord = Callable[[Record, "pd.DataFrame | None"], None]

#: Takes the outcome of a learning-rate search that a group needed.
KeepSearch = Callable[[FitGroup, Search], None]


class Runner:
    """Carries out fit groups in this process; what comes of them goes to ``keep`` and ``keep_search``."""

    def __init__(
        self, resources: Resources, progress: Progress, keep: KeepRecord, keep_search: KeepSearch = lambda *_: None
    ) -> None:
        self.resources = resources
        self.settings = resources.settings
        self.progress = progress
        self.keep = keep
        self.keep_search = keep_search
        self.memory = PeakMemory()
        self._shared: tuple[tuple[Any, ...], EncodedImages] | None = None

    def group(self, group: FitGroup, search: Search | None = None) -> None:
        """Fit and score every cell of a group; ``search`` is the outcome of its learning-rate search if it was done."""
        try:
            fitted = self._fit(group, self._task(group.cells[0]), search)
        except Exception as error:
            for cell in group.cells:
                self._failed(cell, error)
            release_memory(error)
            return
        for cell in group.cells:
            try:
                record, per_query = self._score(cell, fitted)
            except Exception as error:
                self._failed(cell, error, fitted)
                release_memory(error)
                continue
            self.keep(record, per_query)
        if fitted.method.trained:
            fitted.encoded.discard()

    def _task(self, cell: Cell) -> Task:
        return self.resources.task(cell.id.dataset, cell.id.protocol, cell.id.split)

    def _fit(self, group: FitGroup, task: Task, known: Search | None) -> _Fitted:
        self.progress.fitting(group)
        logged: list[dict[str, Any]] = []

        def log(**numbers: Any) -> None:
            logged.append(numbers)
            self.progress.log(**numbers)

        cache = self.resources.pixels(group.dataset)
        rules = self.settings.rules

        def validation_score(method: Method, question: Question) -> float:
            encoded = EncodedImages(encode_as(method, rules), cache, lambda count: None, device=method.device)
            if isinstance(question, Classification):
                scores = score_classification(method, encoded, question, rules).scores
                return scores.means()["accuracy[image]" if question.seen is None else "h[image]"]
            return score_retrieval(method, encoded, question, rules, ks=()).means()["map@all"]

        data = training_data(task, cache, validation_score, select=self.settings.select)

        def train(config: Any, seed: int) -> _Trained:
            seed_everything(seed)
            logged.clear()
            method = METHODS.get(group.method)(self.resources.backbone, config, self.resources.device)
            if method.trained:
                check_processes(method)
            begun = time.perf_counter()
            with fail_together():
                report = method.fit(data, seed=seed, log=log)
            return _Trained(method, report, time.perf_counter() - begun, list(logged))

        search, trained = Search(), None
        with self._measured() as peak:
            if known is not None:
                search = known
            elif len(group.learning_rates) > 1:
                search, trained = self._search(group, data, train)
            elif group.learning_rates:
                search = Search(learning_rate=group.learning_rates[0])
            config = group.config
            if search.learning_rate is not None:
                config = dataclasses.replace(config, learning_rate=search.learning_rate)
            trained = trained or train(config, group.seed)
        encoded = self._encoded(group, trained.method, cache)
        return _Fitted(
            trained.method,
            trained.report,
            trained.logged,
            search,
            encoded,
            trained.seconds,
            peak["mib"] or 0.0,
            peak["gpu_mib"],
        )

    def _search(
        self, group: FitGroup, data: TrainingData, train: Callable[[Any, int], _Trained]
    ) -> tuple[Search, _Trained | None]:
        """The learning rate that validation picks from the grid, and the training with it if its seed is the group's.

        Each rate is trained with :data:`SEARCH_SEED` and the whole budget; the best validation score wins, the first if
        equal. A rate that fails (the loss runs away) is noted and loses; if all fail, the last error is raised. Where
        some were trained but none has a score that is a number, the configured rate is taken. The result is kept with
        the records, so the other seeds, and a sweep that goes on, need no second search.
        """
        best: _Trained | None = None
        best_score, best_rate, error = -math.inf, None, None
        unscored = False
        trials: list[dict[str, Any]] = []
        for rate in group.learning_rates:
            try:
                trained = train(dataclasses.replace(group.config, learning_rate=rate), SEARCH_SEED)
                score = data.validate(trained.method)
            except Exception as failure:
                trials.append({"learning_rate": rate, "validation": None, "reason": describe(failure)})
                error = failure
                continue
            trial = {"learning_rate": rate, "validation": score, "seconds": trained.seconds}
            if not math.isfinite(score):
                trials.append({**trial, "validation": None, "reason": f"the validation score is {score}"})
                unscored = True
                continue
            trials.append(trial)
            if best is None or score > best_score:
                best, best_score, best_rate = trained, score, rate
        if best is None and not unscored:
            assert error is not None
            raise error
        if best is None:
            best_rate = float(group.config.learning_rate)
        search = Search(trials, best_rate)
        self.keep_search(group, search)
        return search, best if group.seed == SEARCH_SEED else None

    def _encoded(self, group: FitGroup, method: Method, cache: PixelCache) -> EncodedImages:
        """Images encoded by this model; models whose image embedding needs no training share them."""
        folder = None if self.settings.force else embedding_folder(group, method, cache)
        encode, report = encode_as(method, self.settings.rules), self.progress.images
        fresh = EncodedImages(encode, cache, report, folder, device=method.device)
        if method.trained:
            self._shared = None
            return fresh
        key = (group.dataset, group.method, group.config, group.seed)
        if self._shared is None or self._shared[0] != key:
            self._shared = (key, fresh)
        return self._shared[1]

    def _score(self, cell: Cell, fitted: _Fitted) -> tuple[Record, pd.DataFrame]:
        task = self._task(cell)
        encoded = fitted.encoded
        card = self.resources.dataset(cell.id.dataset).card
        cuts = tuple(sorted({100, 200, *(k for k in (card.headline.map_at, card.headline.precision_at) if k)}))
        scores: dict[str, GalleryScores] = {}
        frames: list[pd.DataFrame] = []
        clock = time.perf_counter
        with self._measured() as peak:
            started = clock()
            for retrieval in task.retrievals:
                encoded.encode(np.concatenate([retrieval.query, retrieval.gallery]))
            encoded_at = clock()
            for retrieval in task.retrievals:
                result = score_retrieval(fitted.method, encoded, retrieval, self.settings.rules, ks=cuts, top=TOP)
                scores[retrieval.name] = GalleryScores(
                    metrics=result.means(),
                    n_queries=result.n_queries,
                    gallery_size=result.gallery_size,
                    similarity=result.similarity,
                    n_without_relevant=result.n_without_relevant,
                    without_relevant=result.without_relevant,
                )
                frames.append(self._per_query(cell, retrieval, result))
            ranked_at = clock()
            for question in task.classifications:
                answers = score_classification(fitted.method, encoded, question, self.settings.rules, top=TOP)
                means = answers.scores.means()
                scores[question.name] = GalleryScores(means, len(question.rows), len(question.class_names), "logits")
                frames.append(self._per_image(cell, question, answers))
            classified_at = clock()
        seconds = {"encode": encoded_at - started, "rank": ranked_at - encoded_at}
        if task.classifications:
            seconds["classify"] = classified_at - ranked_at
        rate = encoded.count / encoded.seconds if encoded.seconds else None
        cost = self._fit_cost(fitted, peak)
        cost = dataclasses.replace(
            cost,
            seconds={**cost.seconds, **seconds},
            pictures_per_second=rate,
        )
        fit = self._fit_facts(cell, fitted)
        record = make_record(self.resources, cell, "ok", scores=scores, fit=fit, cost=cost)
        return record, pd.concat(frames, ignore_index=True)

    def _per_query(self, cell: Cell, retrieval: Retrieval, result: RetrievalScores) -> pd.DataFrame:
        """One row a query: key, class, domain, gallery, n_relevant, every per-query value, top gallery keys, scores."""
        values = result.per_query().drop(columns=["top_ids", "top_scores"])
        values = self._about(cell, retrieval.query, retrieval.name, values)
        keys = self.resources.dataset(cell.id.dataset).table["key"].to_numpy()[retrieval.gallery]
        assert result.top_ids is not None and result.top_scores is not None
        values["top_keys"] = [keys[ids].tolist() for ids in result.top_ids]
        values["top_scores"] = [np.round(row, 4).tolist() for row in result.top_scores]
        return values

    def _per_image(self, cell: Cell, question: Classification, answers: Answers) -> pd.DataFrame:
        """One row an image: key, class, domain, question, credit, the classes answered first and their logits."""
        values = answers.scores.per_image().drop(columns="label")
        values = self._about(cell, question.rows, question.name, values)
        names = np.array(question.class_names, dtype=object)
        values["top_keys"] = [names[ids].tolist() for ids in answers.best_classes.numpy()]
        values["top_scores"] = [np.round(row, 4).tolist() for row in answers.best_logits.double().numpy()]
        return values

    def _about(self, cell: Cell, rows: np.ndarray, name: str, values: pd.DataFrame) -> pd.DataFrame:
        asked = self.resources.dataset(cell.id.dataset).table.iloc[rows]
        about = {column: asked[column].to_numpy() for column in ("key", "class", "domain")}
        return pd.concat([pd.DataFrame(about).assign(gallery=name), values.reset_index(drop=True)], axis=1).rename(
            columns={"key": "query"}
        )

    def _fit_facts(self, cell: Cell, fitted: _Fitted) -> Fit:
        report = fitted.report
        losses: list[dict[str, Any]] = list(report.losses) or fitted.logged
        return Fit(
            fit_id=cell.fit_id,
            steps=report.steps,
            selected_step=report.selected_step,
            losses=losses,
            validation=list(report.validation),
            trials=fitted.search.trials,
            learning_rate=fitted.search.learning_rate,
        )

    def _fit_cost(self, fitted: _Fitted, peak: dict[str, float | None] | None = None) -> Cost:
        searched = sum(trial.get("seconds", 0.0) for trial in fitted.search.trials)
        peaks = [fitted.peak_mib, *([peak["mib"]] if peak and peak["mib"] else [])]
        gpu = [value for value in (fitted.peak_gpu_mib, peak["gpu_mib"] if peak else None) if value is not None]
        return Cost(
            seconds={"fit": fitted.seconds, **({"search": searched} if fitted.search.trials else {})},
            peak_memory_mib=max(peaks),
            peak_gpu_memory_mib=max(gpu) if gpu else None,
            trainable_parameters=fitted.report.trainable_parameters,
            total_parameters=fitted.method.total_parameters(),
        )

    @contextmanager
    def _measured(self) -> Iterator[dict[str, float | None]]:
        """Peak memory of a block: ``mib`` and, on a GPU, ``gpu_mib``: of the GPU that this process works on."""
        device = torch.device(self.resources.device)
        gpu = device.type == "cuda"
        peak: dict[str, float | None] = {"mib": None, "gpu_mib": None}
        self.memory.restart()
        if gpu:
            torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak["mib"] = self.memory.mib()
        if gpu:
            torch.cuda.synchronize(device)
            peak["gpu_mib"] = torch.cuda.max_memory_allocated(device) / 2**20

    def _failed(self, cell: Cell, error: Exception, fitted: _Fitted | None = None) -> None:
        status: Status = "not_applicable" if isinstance(error, NotApplicableError) else "failed"
        extra: dict[str, Any] = {}
        if fitted is not None:
            extra = {"fit": self._fit_facts(cell, fitted), "cost": self._fit_cost(fitted)}
        trace = "".join(traceback.format_exception(error)) if status == "failed" else ""
        self.keep(make_record(self.resources, cell, status, reason=explain(error), traceback=trace, **extra), None)


def make_record(resources: Resources, cell: Cell, status: Status, **values: Any) -> Record:
    """A cell's record made here and now; ``values`` are further fields of :class:`~benchmarks.store.records.Record`."""
    method: dict[str, Any] = {}
    dataset: dict[str, Any] = {}
    notes: list[str] = []
    if cell.id.split != "*":
        card, data = METHODS.get(cell.id.method).card, resources.dataset(cell.id.dataset).card
        task = resources.task(cell.id.dataset, cell.id.protocol, cell.id.split)
        retrievals = {one.name for one in task.retrievals}
        extensions = {
            name: card.extension(task.protocol, "retrieval" if name in retrievals else "classification")
            for name in cell.galleries
        }
        method = {
            "title": card.title,
            "floor": card.floor,
            "extensions": {name: text for name, text in extensions.items() if text},
            # scores depend on the batch where a method mixes the images of one (SRE-CLIP's released evaluation)
            "encode_batch": BATCH,
        }
        source = resources.dataset(cell.id.dataset)
        dataset = {"title": data.title, "version": data.version, "gallery_domain": data.gallery_domain}
        dataset |= {"facts": list(source.facts), "left_out": source.left_out}
        notes = [*task.notes, *source.name_notes]
        if source.left_out:
            notes.append(f"left out of the data: {source.left_out}")
        if missing := unvalidated(resources.settings, task, METHODS.get(cell.id.method)):
            notes.append(missing)
        if values.get("fit"):
            notes += search_notes(values["fit"])
    return Record(
        key=cell.key,
        status=status,
        cell=cell.id,
        inputs=dict(cell.inputs),
        method=method,
        dataset=dataset,
        galleries={name: list(metrics) for name, metrics in cell.galleries.items()},
        environment=environment(resources.device, resources.settings.threads),
        notes=notes,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **values,
    )


def search_notes(fit: Fit) -> list[str]:
    """What a reader must know of how the learning rate was picked: a tie, or that no trial has a score."""
    if not fit.trials:
        return []
    scores = [trial.get("validation") for trial in fit.trials]
    known = [score for score in scores if score is not None]
    if not known:
        return [f"no learning rate of the grid has a validation score: {fit.learning_rate:g} taken as configured"]
    tied = [trial["learning_rate"] for trial, score in zip(fit.trials, scores, strict=True) if score == max(known)]
    if len(tied) == 1:
        return []
    return [f"learning rates {', '.join(f'{rate:g}' for rate in tied)} tie in validation: the first is taken"]


def explain(error: BaseException) -> str:
    """One line: the error, and the mend where the error does not name it itself."""
    return f"{describe(error)}; {OUT_OF_MEMORY}" if out_of_memory(error) else describe(error)


#: The mend for a process that needs more memory than there is.
OUT_OF_MEMORY = "give it less to hold: fewer --jobs, a smaller batch (--set batch_size=N), or --precision bf16"


def out_of_memory(error: BaseException) -> bool:
    """Whether memory, of the machine or a GPU, ran out; torch's CPU allocator has no error class of its own."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def release_memory(error: BaseException) -> None:
    """After an allocation failed: let go of what the error's frames hold, so that the next group has room."""
    if out_of_memory(error):
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
