"""Batches of image indices, and the classes that have labelled images.

N labelled images in D domains.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from methods.interface import Images, TrainingData
from methods.official.pros_release import official_batches, official_epoch

#: How training batches, balanced over domains, are drawn: ``reshuffled`` every epoch, or as in the ``released`` code.
Sampler = Literal["reshuffled", "released"]


def batches(
    data: TrainingData, batch_size: int, generator: torch.Generator, *, balanced: Literal["none", "domain"] = "none"
) -> Iterator[Tensor]:
    """Endless index batches ``[min(batch_size, N)]`` into ``data.images``.

    ``none``: a fresh shuffle of all images each epoch; a batch may run over the end of one epoch into the next.
    ``domain``: equally many of every training domain (their own shuffles, restarted as each runs out), in domain order;
    the batch is then ``batch_size // D`` of each of the D domains.
    """
    groups = [torch.arange(len(data.images))]
    if balanced == "domain":
        groups = [torch.nonzero(data.domains == d).flatten() for d in torch.unique(data.domains)]
    take = max(1, min(batch_size, len(data.images)) // len(groups))
    streams = [_endless(group, take, generator) for group in groups]
    while True:
        yield torch.cat([next(stream) for stream in streams])


def _endless(group: Tensor, take: int, generator: torch.Generator) -> Iterator[Tensor]:
    queue = torch.empty(0, dtype=torch.int64)
    while True:
        while len(queue) < take:
            queue = torch.cat([queue, group[torch.randperm(len(group), generator=generator)]])
        yield queue[:take]
        queue = queue[take:]


def target_batches(images: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless shuffled index batches ``[min(batch_size, images)]`` of unlabelled target images."""
    return _endless(torch.arange(images), min(batch_size, images), generator)


def seen_classes(data: TrainingData) -> tuple[list[str], Tensor]:
    """Names of the C classes with labelled images, and each image's label among them: [N], 0..C-1."""
    seen, labels = torch.unique(data.labels, return_inverse=True)
    return [data.class_names[int(number)] for number in seen], labels


def domain_batches(
    data: TrainingData, batch_size: int, generator: torch.Generator, sampler: Sampler, *, round_size: int = 0
) -> Iterator[Tensor]:
    """Endless index batches into ``data.images``, balanced over domains.

    ``reshuffled``: :func:`batches` with ``generator``. ``released``: :func:`official_batches`,
    without it, in rounds of ``round_size`` (0: of ``batch_size``).
    """
    if sampler == "released":
        return official_batches(data.domains, batch_size, round_size or batch_size)
    return batches(data, batch_size, generator, balanced="domain")


def epoch_images(data: TrainingData, sampler: Sampler, round_size: int) -> int:
    """Images in an epoch: all N, or those that the official sampler draws in rounds of ``round_size``."""
    return official_epoch(data.domains, round_size) if sampler == "released" else len(data.images)


def domain_pairs(domains: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless pairs of index batches, each of one training domain, of two different ones; ``domains`` [N].

    The first domain is drawn in proportion to its images, the second evenly from the others (the same one if there is
    only one).
    """
    rows = [torch.nonzero(domains == domain).flatten() for domain in torch.unique(domains)]
    streams = [[target_batches(len(images), batch_size, generator) for images in rows] for _ in ("first", "second")]
    counts = torch.tensor([float(len(images)) for images in rows])
    while True:
        first = int(torch.multinomial(counts, 1, generator=generator))
        others = [number for number in range(len(rows)) if number != first] or [first]
        second = others[int(torch.randint(len(others), (), generator=generator))]
        yield rows[first][next(streams[0][first])], rows[second][next(streams[1][second])]


class Subset(Images):
    """Some images of a set, in the order of ``index`` [N] into it."""

    def __init__(self, images: Images, index: Tensor) -> None:
        self.images, self.index = images, index

    def __len__(self) -> int:
        return len(self.index)

    def pixels(self, index: Tensor) -> Tensor:
        """As of the whole set, at the places that ``index`` [B] has there."""
        return self.images.pixels(self.index[index])

    def stored(self, index: Tensor) -> Tensor:
        """The same as they are kept."""
        return self.images.stored(self.index[index])

    @property
    def content(self) -> Sequence[str]:
        """Content hashes of these images."""
        content = self.images.content
        return [content[number] for number in self.index.tolist()]


def restricted(data: TrainingData, index: Tensor) -> TrainingData:
    """``data`` with the labelled images at ``index`` alone; all else, validation too, is the same."""
    few = copy.copy(data)
    few.images, few.labels, few.domains = Subset(data.images, index), data.labels[index], data.domains[index]
    return few


def few_shots(labels: Tensor, domains: Tensor, shots: int, generator: torch.Generator) -> Tensor:
    """Sorted indices of ``shots`` images of each class (0: all), drawn with ``generator``, evenly over its domains.

    ``labels`` and ``domains`` [N]. A class with fewer images gives all of them; a draw of fewer shots is part of one of
    more.
    """
    order = torch.randperm(len(labels), generator=generator)
    if shots < 1:
        return order.sort().values
    groups = labels * (int(domains.max()) + 1) + domains
    turn = _place_among_equals(groups[order])  # how many of the class and domain come before
    order = order[turn.argsort(stable=True)]
    return order[_place_among_equals(labels[order]) < shots].sort().values


def _place_among_equals(values: Tensor) -> Tensor:
    """How many equal values come before each of ``values`` [N]: [N]."""
    order = values.argsort(stable=True)
    _, counts = torch.unique_consecutive(values[order], return_counts=True)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    places = torch.empty_like(values)
    places[order] = torch.arange(len(values)) - starts
    return places


class Partners:
    """Draws for each anchor an image of its class from another domain.

    An image whose class is in its own domain alone gets another one from there; the only image of a class gets itself.
    """

    def __init__(self, labels: Tensor, domains: Tensor) -> None:
        """``labels`` [N] and ``domains`` [N], numbers from 0, on the CPU."""
        group = labels * (int(domains.max()) + 1) + domains
        self.order = torch.argsort(group, stable=True)  # by class, and by domain inside a class
        self.place = torch.argsort(self.order)
        self.of_class, self.of_group = _runs(labels[self.order]), _runs(group[self.order])

    def draw(self, anchors: Tensor, generator: torch.Generator) -> Tensor:
        """The partners [A] of the images at ``anchors`` [A]."""
        place = self.place[anchors]
        (start, count), (gap, width) = ((runs[0][place], runs[1][place]) for runs in (self.of_class, self.of_group))
        alone = count == width  # in one domain: of it, but not itself
        start, count = torch.where(alone, gap, start), torch.where(alone, width, count)
        gap, width = torch.where(alone, place, gap), torch.where(alone, 1, width)
        free = count - width
        drawn = start + (torch.rand(len(anchors), generator=generator, dtype=torch.float64) * free).long()
        drawn = drawn + torch.where(drawn >= gap, width, 0)
        return self.order[torch.where(free > 0, drawn, place)]


def _runs(values: Tensor) -> tuple[Tensor, Tensor]:
    """Where the run of equal values that each of the sorted ``values`` [N] is in begins, and its length: [N] each."""
    _, run, length = torch.unique_consecutive(values, return_inverse=True, return_counts=True)
    return (length.cumsum(0) - length)[run], length[run]
