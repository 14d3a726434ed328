"""The training loop of all trained methods: budget, learning rate, validation and the selection of weights.

A method describes a stage by its optimisers and a function from step number to loss; :func:`run_stage` does the rest:
backward, step, loss curve, validation, early stop, best weights. Selection uses ``data.validate`` only.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods.interface import FitReport, Log, Method, TrainingData
from methods.parts import parallel

#: Points kept of a loss curve.
CURVE_POINTS = 200


class TrainingError(RuntimeError):
    """Training cannot go on (the loss is not a number, ...); one line with the fix."""


def seeded(seed: int, *parts: int) -> torch.Generator:
    """A CPU generator that depends on the seed and the given parts (stage, step, ...), and on nothing else."""
    value = seed & 0xFFFFFFFF
    for part in parts:
        value = (value * 1_000_003 + part + 1) & 0x7FFFFFFFFFFFFFFF
    return torch.Generator().manual_seed(value)


def budget(steps: int, epochs: int, images: int, batch_size: int) -> int:
    """Optimiser steps of a stage: ``steps`` if positive (a preset's budget), else ``epochs`` over the images."""
    return steps if steps > 0 else max(1, epochs * math.ceil(images / batch_size))


def count_parameters(parameters: Sequence[nn.Parameter] | Mapping[str, Tensor]) -> int:
    """Number of trained values."""
    values = parameters.values() if isinstance(parameters, Mapping) else parameters
    return sum(value.numel() for value in values)


def run_single_stage(
    method: Method,
    data: TrainingData,
    log: Log,
    *,
    stage: str,
    trained: Mapping[str, nn.Parameter],
    loss: Callable[[int], Tensor],
    images: int,
    rate: Callable[[int], float] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    step_rate: Callable[[int, int], float] | None = None,
    after_step: Callable[[int, int], None] | None = None,
) -> FitReport:
    """All the training of a method that has one stage: :func:`run_stage` with ``optimizer`` (Adam) over ``trained``.

    The method's config gives ``learning_rate``, ``weight_decay``, the budget (``steps``, or ``epochs`` of ``images``
    in batches of ``batch_size``), ``validate_every`` (0: once an epoch, or ten times in ``steps``) and ``patience``.
    ``rate(epoch)`` is the learning rate of an epoch, ``step_rate(step, steps)`` that of a step of all ``steps``, where
    it is not constant; ``after_step(step, steps)`` is called after each.
    """
    config, report = method.config, FitReport(trainable_parameters=count_parameters(trained))
    epoch = budget(0, 1, images, config.batch_size)
    steps = budget(config.steps, config.epochs, images, config.batch_size)
    if optimizer is None:
        optimizer = torch.optim.Adam(trained.values(), lr=config.learning_rate, weight_decay=config.weight_decay)

    def learning_rate(step: int) -> float:
        assert step_rate is not None or rate is not None
        return step_rate(step, steps) if step_rate is not None else rate(step // epoch)  # type: ignore[misc]

    run_stage(
        method,
        data,
        report,
        log,
        stage=stage,
        steps=steps,
        optimizers=[optimizer],
        loss=loss,
        learning_rate=None if rate is None and step_rate is None else learning_rate,
        after_step=None if after_step is None else lambda step: after_step(step, steps),
        validate_every=config.validate_every or (math.ceil(steps / 10) if config.steps else epoch),
        patience=config.patience,
    )
    return report


def check_processes(method: Method) -> None:
    """Raise :class:`~methods.parts.parallel.ParallelError` if several processes train a method that must have one."""
    if parallel.processes() > 1 and method.one_process:
        raise parallel.ParallelError(
            f"{method.card.name} trains in one process: {method.one_process}; run it without accelerate launch"
        )


def training_attention(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The context in which a training step computes its loss: on a GPU, attention as plain matrix products.

    The gradients of the faster kernels are summed in an order that differs from run to run. Encoding, which has no
    gradients, keeps those kernels, and other devices have no such kernel.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else contextlib.nullcontext()


class Reading:
    """The number of a loss on its way to the host.

    On a GPU the copy is queued behind the forward pass, so that :meth:`number` waits for that alone: the backward pass,
    queued meanwhile, runs on while the host prepares what follows. It is the one wait of a training step.
    """

    def __init__(self, value: Tensor) -> None:
        """``value``: a scalar."""
        self._done: torch.cuda.Event | None = None
        self._value = value.detach()
        if self._value.device.type == "cuda":
            self._value = torch.empty((), dtype=value.dtype, pin_memory=True).copy_(self._value, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()

    def number(self) -> float:
        """The loss, once it is there."""
        if self._done is not None:
            self._done.synchronize()
        return float(self._value)


def run_stage(
    method: Method,
    data: TrainingData,
    report: FitReport,
    log: Log,
    *,
    stage: str,
    steps: int,
    optimizers: Sequence[torch.optim.Optimizer],
    loss: Callable[[int], Tensor],
    learning_rate: Callable[[int], float] | None = None,
    after_step: Callable[[int], None] | None = None,
    validate_every: int = 0,
    patience: int = 0,
    clip_norm: float = 0.0,
) -> None:
    """Run one training stage; afterwards the method has the weights that selection chose.

    * ``loss(step)`` computes the step's loss (scalar) with a graph; step counts from 0 within the stage.
    * ``learning_rate(step)`` sets every optimiser group's rate to it times the group's ``"scale"`` (default 1).
    * every ``validate_every`` steps and at the end (0: no validation) ``data.validate(method)`` scores the method
      with its current weights; unless ``data.select`` is ``last``, the best weights are put back at the
      end, and training stops after ``patience`` scores without gain (0: never).
    * gradient clipping is off unless ``clip_norm`` is positive.
    * ``loss`` runs inside :func:`training_attention`, so on a GPU its gradients are the same in every run.
    * where several processes train together (:mod:`methods.parts.parallel`), ``loss`` is that of this process's share
      of the batch; gradients and the loss curve are means over the processes.

    Raises :class:`TrainingError` when the loss is not finite, and :class:`~methods.parts.parallel.ParallelError` where
    the method cannot be spread over several processes.
    """
    parameters = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    check_processes(method)
    parallel.same_start(parameters)
    select = validate_every > 0 and data.select != "last"
    if select:
        report.validations_allowed = math.ceil(steps / validate_every)
    best_score, best_step, waited = -math.inf, 0, 0
    best: dict[str, Tensor] = {}
    every = max(1, steps // CURVE_POINTS)
    first = report.steps
    for step in range(steps):
        if learning_rate is not None:
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step) * group.get("scale", 1.0)
        with training_attention(method.device):
            value = loss(step)
        reading = Reading(value)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        value.backward()
        number = parallel.average(reading.number(), method.device)
        if not math.isfinite(number):
            raise TrainingError(
                f"{method.card.name}: loss is {number} at step {step} of {stage}; lower the learning rate with"
                f" --set {method.card.name}.learning_rate=..."
            )
        parallel.average_gradients(parameters)
        if clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        for optimizer in optimizers:
            optimizer.step()
        if after_step is not None:
            after_step(step)
        report.steps += 1
        if step % every == 0 or step == steps - 1:
            report.losses.append({"stage": stage, "step": first + step, "loss": round(number, 6)})
        log(stage=stage, step=step + 1, steps=steps, loss=number)
        last = step == steps - 1
        if select and ((step + 1) % validate_every == 0 or last):
            score = data.validate(method)
            if math.isnan(score):  # the task has no validation data: run the whole budget, keep the last weights
                select = False
                continue
            report.validation.append({"step": report.steps, "score": round(score, 6)})
            log(stage=stage, step=step + 1, steps=steps, validation=score)
            if score > best_score:
                best_score, best_step, waited = score, report.steps, 0
                best = {name: tensor.detach().clone() for name, tensor in method.tensors().items()}
            else:
                waited += 1
            if patience and waited >= patience:
                report.out_of_patience = not last
                break
    report.selected_step = best_step if select and best else report.steps
    if select and best and best_step != report.steps:
        method.load_tensors(best, method.facts())
