"""Carry out one fit group in this process: fit, encode each image once, rank and classify, pass on the records.

Whatever goes wrong in a cell becomes that cell's record (status, reason, traceback); the sweep goes on. Which group
runs where and when is decided by an executor (:mod:`benchmarks.runner.executors`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.datasets.pixels import PixelCache
from benchmarks.evaluation.ranking import RetrievalScores
from benchmarks.protocols.selection import Question
from benchmarks.protocols.task import Classification, Retrieval, Task
from benchmarks.protocols.training import ScoreFunction, training_data
from benchmarks.runner.embeddings import EncodedImages, embedding_folder, encode_as
from benchmarks.runner.environment import PeakMemory
from benchmarks.runner.failures import describe, explain, release_memory
from benchmarks.runner.outcome import Progress
from benchmarks.runner.plan import SEARCH_SEED, Cell, FitGroup, shown_to
from benchmarks.runner.process_settings import seed_everything
from benchmarks.runner.rate_search import edge, picked
from benchmarks.runner.rates import RateChoice, Source, outcomes
from benchmarks.runner.records import convergence, make_record
from benchmarks.runner.resources import Resources
from benchmarks.runner.scoring import ClassAnswers, score_classification, score_retrieval
from benchmarks.runner.selection_values import SelectionScores, checkpoint_values
from benchmarks.store.records import Cost, Fit, GalleryScores, Record, Search, Status, content_key
from benchmarks.store.weights import STEM, FitWeights
from methods.interface import FitReport, Method, NotApplicableError, TrainingData
from methods.parts.parallel import fail_together
from methods.registry import METHODS
from methods.training.loop import TrainingError, check_processes

#: Gallery images, or classes, kept for each query: those with the highest scores.
TOP = 10


#: Protocol and split of a cell, and what ``--selectors`` recorded of each validation on that cell's task.
Checkpoints = dict[tuple[str, str], list[dict[str, Any]]]


@dataclass(frozen=True)
class _Trained:
    method: Method
    report: FitReport
    seconds: float
    logged: list[dict[str, Any]]
    checkpoints: Checkpoints


@dataclass
class _Fitted:
    first: Cell
    method: Method
    report: FitReport
    logged: list[dict[str, Any]]
    checkpoints: Checkpoints
    search: Search
    rate_from: Source
    encoded: EncodedImages
    seconds: float
    peak_mib: float
    peak_gpu_mib: float | None


@dataclass(frozen=True)
class _Trainer:
    """``train(config, seed)`` a method on one task; ``validation(trained)`` is the validation score of its weights."""

    train: Callable[[Any, int], _Trained]
    validation: Callable[[_Trained], float]
    data: TrainingData


def _tried(trainers: Sequence[_Trainer], config: Any) -> tuple[dict[str, Any], _Trained | None, Exception | None]:
    """A trial of a config by all trainers: what is stored of it, the last trained model, and what went wrong."""
    trial: dict[str, Any] = {"learning_rate": config.learning_rate, "validation": None}
    scores: list[float] = []
    seconds = 0.0
    trained = None
    try:
        for trainer in trainers:
            trained = trainer.train(config, SEARCH_SEED)
            seconds += trained.seconds
            scores.append(trainer.validation(trained))
            if trained.checkpoints and len(trainers) == 1:
                (trial["checkpoints"],) = trained.checkpoints.values()
    except Exception as failure:
        return {**trial, "reason": describe(failure)}, None, failure
    score = math.fsum(scores) / len(scores)
    trial["seconds"] = seconds
    if not math.isfinite(score):
        return {**trial, "reason": f"the validation score is {score}"}, None, None
    return {**trial, "validation": score, **({"by_split": scores} if len(scores) > 1 else {})}, trained, None


def chosen(choice: RateChoice) -> Search:
    """A choice that needs no trial, as the search that a record states: a tuned rate with its trials, or a set one."""
    if choice.tuned is not None:
        tuned = choice.tuned
        return Search(list(tuned.trials), tuned.learning_rate, list(tuned.rate_range), tuned.edge)
    return Search(learning_rate=choice.rates[0] if choice.rates else None)


def without_checkpoints(trial: dict[str, Any]) -> dict[str, Any]:
    """A trial as it is stored without ``--selectors``."""
    return {name: value for name, value in trial.items() if name != "checkpoints"}


class ValidatedWeights:
    """Validation scores of one training by the weights that had them, so that the weights kept need no second pass.

    A method's learned tensors and facts are all that a checkpoint holds: with equal ones the score is equal to the bit.
    A method that declares no learned tensors is always scored again: its weights cannot be compared.
    """

    def __init__(self) -> None:
        self._scores: dict[str, float] = {}

    def clear(self) -> None:
        """Clear the scores of the previous training."""
        self._scores.clear()

    def recorded(self, score: ScoreFunction) -> ScoreFunction:
        """``score``, with every result noted under the method's current weights."""

        def score_and_note(method: Method, question: Question) -> float:
            value = score(method, question)
            if (weights := weights_digest(method)) is not None:
                self._scores[weights] = value
            return value

        return score_and_note

    def score(self, method: Method) -> float | None:
        """The score of a method's current weights; None if they were not validated."""
        weights = weights_digest(method) if self._scores else None
        return None if weights is None else self._scores.get(weights)


def weights_digest(method: Method) -> str | None:
    """sha256 of a method's learned tensors and of the facts stored with them; None if it declares no tensors."""
    tensors = method.tensors()
    if not tensors:
        return None
    digest = hashlib.sha256(content_key({"facts": dict(method.facts())}).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fit_weights(method: Method, report: FitReport, data: TrainingData) -> FitWeights:
    """The files of a fitted method, with the validation score of its weights; None for a method that is not trained.

    The score is the one that selected the weights, or is computed now where training looked at none.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            method.save(Path(folder) / STEM, scores=())
            files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    except Exception as error:  # a full disk, facts that JSON cannot hold: the scores are measured all the same
        return FitWeights({}, problem=describe(error))
    if not method.trained:
        return FitWeights(files)
    known = [one["score"] for one in report.validation if one.get("step") == report.selected_step]
    with fail_together():
        score = float(known[-1]) if known else round(data.validate(method), 6)
    return FitWeights(files, score if math.isfinite(score) else None)


#: Takes a cell's record and its per-query values (None where there are no scores).
KeepRecord = Callable[[Record, "pd.DataFrame | None"], None]

#: Takes what a learning-rate search that a group needs has found so far: without a rate until it is finished.
KeepSearch = Callable[[FitGroup, Search], None]

#: Takes the weights of a group's fit, before its records.
WeightsKeeper = Callable[[FitGroup, FitWeights], None]


class GroupRunner:
    """Carries out fit groups in this process; records go to ``keep``, searches to ``keep_search``, weights, where the
    settings ask for them, to ``keep_weights``."""

    def __init__(
        self,
        resources: Resources,
        progress: Progress,
        keep: KeepRecord,
        keep_search: KeepSearch = lambda *_: None,
        keep_weights: WeightsKeeper = lambda *_: None,
    ) -> None:
        self.resources = resources
        self.settings = resources.settings
        self.progress = progress
        self.keep = keep
        self.keep_search = keep_search
        self.keep_weights = keep_weights
        self.memory = PeakMemory()
        self._shared: tuple[tuple[Any, ...], EncodedImages] | None = None

    def group(self, group: FitGroup, search: Search | None = None) -> None:
        """Fit and score every cell of a group; ``search`` is what is known of its learning-rate search."""
        if group.tuning:
            try:
                self._tune(group, search)
            except Exception as error:
                self._failed(group.cells[0], error)
                release_memory(error)
            return
        try:
            fitted = self._fit(group, self._task(group.cells[0]), search)
        except Exception as error:
            for cell in group.cells:
                self._failed(cell, error)
            release_memory(error)
            return
        for cell in group.cells:
            try:
                with fail_together():  # processes that train together encode together
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
        trainer = self._trainer(group, task)
        search, trained = known, None
        with self._measured() as peak:
            if group.choice.searched and (known is None or known.learning_rate is None):
                search, trained = self._search(group, [trainer], known)
            if search is None:
                search = chosen(group.choice)
            config = group.config
            if search.learning_rate is not None:
                config = dataclasses.replace(config, learning_rate=search.learning_rate)
            trained = trained or trainer.train(config, group.seed)
            if self.settings.keep_weights is not None:
                self.keep_weights(group, fit_weights(trained.method, trained.report, trainer.data))
        encoded = self._encoded(group, trained.method, self.resources.pixels(group.dataset))
        return _Fitted(
            group.cells[0],
            trained.method,
            trained.report,
            trained.logged,
            trained.checkpoints,
            search,
            group.choice.source,
            encoded,
            trained.seconds,
            peak["mib"] or 0.0,
            peak["gpu_mib"],
        )

    def _trainer(self, group: FitGroup, task: Task) -> _Trainer:
        """Trains the group's method on a task with any learning rate."""
        self.progress.fitting(group)
        logged: list[dict[str, Any]] = []

        def log(**numbers: Any) -> None:
            logged.append(numbers)
            self.progress.log(**numbers)

        cache = self.resources.pixels(group.dataset)
        rules = self.settings.rules

        selectors, first = self.settings.selectors, group.cells[0].id
        # cells with other target images have checkpoints of their own; else those of the first cell stand for all
        scored = {(first.protocol, first.split): task}
        if task.target is not None and not group.choice.searched:
            scored |= {(cell.id.protocol, cell.id.split): self._task(cell) for cell in group.cells}
        checkpoints: Checkpoints = {}

        def validation_score(method: Method, question: Question) -> float:
            encoded = EncodedImages(encode_as(method, rules), cache, lambda count: None, device=method.device)
            scores = SelectionScores(method, encoded, rules)
            if selectors:
                where = {name: value for name, value in (logged or [{}])[-1].items() if name in ("stage", "step")}
                for of_cell, asked in scored.items():
                    values = checkpoint_values(asked, selectors, scores.score)
                    checkpoints.setdefault(of_cell, []).append({**where, **values})
            return scores.score(question)

        validated = ValidatedWeights()
        score = validated.recorded(validation_score) if group.choice.searched else validation_score
        shown = shown_to(METHODS.get(group.method), task, self.settings.select)
        data = training_data(shown, cache, score, select=self.settings.select)

        def train(config: Any, seed: int) -> _Trained:
            seed_everything(seed)
            logged.clear()
            validated.clear()
            checkpoints.clear()
            method = METHODS.get(group.method)(self.resources.backbone, config, self.resources.device)
            if method.trained:
                check_processes(method)
            start = time.perf_counter()
            with fail_together():
                report = method.fit(data, seed=seed, log=log)
            return _Trained(method, report, time.perf_counter() - start, list(logged), dict(checkpoints))

        def validation(trained: _Trained) -> float:
            known = validated.score(trained.method)
            with fail_together():
                return data.validate(trained.method) if known is None else known

        return _Trainer(train, validation, data)

    def _search(
        self, group: FitGroup, trainers: Sequence[_Trainer], begun: Search | None = None
    ) -> tuple[Search, _Trained | None]:
        """The learning rate that validation picks, and its training (of the last trainer) if its seed is the group's.

        Each rate is trained with :data:`SEARCH_SEED` and the whole budget by every trainer; the best mean of their
        validation scores wins, the first tried if equal. A rate that fails (the loss runs away) is noted and loses; if
        all fail, the last error is raised. Where some were trained but none has a score that is a number, the
        configured rate is taken. The search is stored with the records after each trial, so the other seeds, and a
        resumed sweep, need no second one; ``begun`` is what was stored of one that was stopped.
        """
        choice = group.choice
        trials: list[dict[str, Any]] = list(begun.trials) if begun is not None else []
        best: _Trained | None = None
        best_score, error = -math.inf, None
        for trial in trials:
            if trial.get("validation") is not None:
                best_score = max(best_score, trial["validation"])
        while (rate := choice.next(trials)) is not None:
            trial, trained, failure = _tried(trainers, dataclasses.replace(group.config, learning_rate=rate))
            trials.append(trial)
            error = failure or error
            if trained is not None and trial["validation"] is not None and trial["validation"] > best_score:
                best, best_score = trained, trial["validation"]
            del trained
            self.keep_search(group, Search(list(trials), rate_range=choice.rate_range()))
        rate = picked(outcomes(trials))
        if rate is None:
            if all("seconds" not in trial for trial in trials):
                raise (
                    error
                    if error is not None
                    else TrainingError(f"every learning rate failed: {trials[-1]['reason']}; --force searches again")
                )
            rate, best = float(group.config.learning_rate), None
        search = Search(trials, rate, choice.rate_range(), edge(outcomes(trials)))
        self.keep_search(group, search)
        return search, best if group.seed == SEARCH_SEED and not group.partners else None

    def _tune(self, group: FitGroup, known: Search | None) -> None:
        """Only the search of a group, on its own task and its partners'; its outcome goes to ``keep_search``."""
        if known is None or known.learning_rate is None:
            tasks = [self._task(cell) for cell in (group.cells[0], *group.partners)]
            self._search(group, [self._trainer(group, task) for task in tasks], known)

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

    def _per_image(self, cell: Cell, question: Classification, answers: ClassAnswers) -> pd.DataFrame:
        """One row an image: key, class, domain, question, credit, the classes with the highest logits, and these."""
        values = answers.scores.per_image().drop(columns="label")
        values = self._about(cell, question.rows, question.name, values)
        names = np.array(question.class_names, dtype=object)
        values["top_keys"] = [names[ids].tolist() for ids in answers.best_classes.numpy()]
        values["top_scores"] = [np.round(row, 4).tolist() for row in answers.best_logits.double().numpy()]
        return values

    def _about(self, cell: Cell, rows: np.ndarray, name: str, values: pd.DataFrame) -> pd.DataFrame:
        rows_asked = self.resources.dataset(cell.id.dataset).table.iloc[rows]
        about = {column: rows_asked[column].to_numpy() for column in ("key", "class", "domain")}
        return pd.concat([pd.DataFrame(about).assign(gallery=name), values.reset_index(drop=True)], axis=1).rename(
            columns={"key": "query"}
        )

    def _fit_facts(self, cell: Cell, fitted: _Fitted) -> Fit:
        report, first = fitted.report, cell.key == fitted.first.key  # the test scores of trials are of the first cell
        losses: list[dict[str, Any]] = list(report.losses) or fitted.logged
        return Fit(
            fit_id=cell.fit_id,
            steps=report.steps,
            selected_step=report.selected_step,
            losses=losses,
            validation=list(report.validation),
            trials=fitted.search.trials if first else [without_checkpoints(trial) for trial in fitted.search.trials],
            learning_rate=fitted.search.learning_rate,
            rate_from=fitted.rate_from if fitted.method.trained else "",
            rate_range=fitted.search.rate_range,
            edge=fitted.search.edge,
            convergence=convergence(report) if fitted.method.trained else "",
            checkpoints=fitted.checkpoints.get((cell.id.protocol, cell.id.split), []),
        )

    def _fit_cost(self, fitted: _Fitted, peak: dict[str, float | None] | None = None) -> Cost:
        trials = [] if fitted.rate_from == "tuned" else fitted.search.trials  # those were made beforehand
        searched = sum(trial.get("seconds", 0.0) for trial in trials)
        peaks = [fitted.peak_mib, *([peak["mib"]] if peak and peak["mib"] else [])]
        gpu = [value for value in (fitted.peak_gpu_mib, peak["gpu_mib"] if peak else None) if value is not None]
        return Cost(
            seconds={"fit": fitted.seconds, **({"search": searched} if trials else {})},
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
