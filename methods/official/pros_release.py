"""What the official code of ProS does in all its methods: one sampler, one schedule of the learning rate.

UCDR-Adapter's official code and the CoOp, VPT and CLIP-Full baselines of the ProS release are built on it.

N labelled images in D domains.
"""

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

#: The lowest learning rate of :func:`decayed_rate`.
LOWEST_RATE = 1e-6

#: What all baselines of the ProS release do, as changes to :class:`methods.training.image_text.ReleasedConfig`.
BASELINE: dict[str, Any] = {
    "temperature": 0.0,
    "train_statistics": "imagenet",
    "schedule": "released",
    "sampler": "released",
}


def decayed_rate(learning_rate: float, epoch: float, lowest: float = LOWEST_RATE) -> float:
    """Learning rate of the official schedule: ``learning_rate * 10^(-3 epoch / 20)``, epoch from 0, or ``lowest``."""
    return max(lowest, learning_rate * 10.0 ** (-3.0 * epoch / 20.0))


def official_batches(domains: Tensor, batch_size: int, round_size: int) -> Iterator[Tensor]:
    """Endless index batches of the official sampler (tests/golden/README.md, section 9); ``domains`` [N].

    Rounds of ``round_size // D`` images of each of the D domains in turn. The order is shuffled once, with seed 0
    whatever the run's seed, and repeated; it goes on across epochs. A batch is ``batch_size // round_size`` rounds: the
    official loader of the first stage (400) reads the rounds of the second (50).
    """
    groups = [torch.nonzero(domains == domain).flatten().tolist() for domain in torch.unique(domains)]
    take = max(1, round_size // len(groups))
    shuffler = random.Random(0)
    for group in groups:
        shuffler.shuffle(group)
    position = 0
    while True:
        batch: list[int] = []
        for _ in range(max(1, batch_size // round_size)):
            for number, group in enumerate(groups):
                while position + take >= len(group):
                    group = groups[number] = group * 2
                batch += group[position : position + take]
            position += take
        yield torch.tensor(batch)


def official_epoch(domains: Tensor, round_size: int) -> int:
    """Images in an epoch of the official sampler: as many rounds as the smallest domain fills (at least one)."""
    sizes = torch.unique(domains, return_counts=True)[1]
    take = max(1, round_size // len(sizes))
    return max(1, int(sizes.min()) // take) * take * len(sizes)
