"""The released code's sampling rules (ProS, UCDR-Adapter), kept to the digit for ``--rules official``.

Their flaws are part of them: validation classes are trained on; the UdCDR sample covers the first 45 training classes
and its gallery images were all trained on, because the 92 % rule and the sampling rule draw from the same generator
state; model selection looks at the test queries. The authors list files in file-system order; here they are sorted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Share of the gallery domain's images of a train class that is trained on.
TRAIN_SHARE = 0.92
#: UdCDR covers this many training classes, in list order.
UDCDR_CLASSES = 45


def permutation(seed: int, count: int) -> np.ndarray:
    """``numpy.random.RandomState(seed).permutation(count)``; the seed is the class's position in the training list."""
    return np.random.RandomState(seed).permutation(count)


def generalised(files_by_class: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Split every train class's sorted files: ``(training part in drawn order, the rest sorted)``."""
    training: list[int] = []
    rest: list[int] = []
    for position, files in enumerate(files_by_class):
        drawn = permutation(position, len(files))[: int(TRAIN_SHARE * len(files))]
        training += [files[i] for i in drawn]
        rest += sorted(set(files) - {files[i] for i in drawn})
    return training, rest


def plain(files_by_class: Sequence[Sequence[int]]) -> list[int]:
    """All files of the classes, class by class: the listing of training domains, and of the gallery domain of data sets
    without a mixed gallery."""
    return [row for files in files_by_class for row in files]


def udcdr_share(held_out_domain: str) -> float:
    """Share of a class's files in the UdCDR sample: 10 % when quickdraw is held out, else 25 %."""
    return 0.1 if held_out_domain == "quickdraw" else 0.25


def udcdr_sample(files_by_class: Sequence[Sequence[int]], share: float) -> list[int]:
    """UdCDR sample of the first 45 train classes, in drawn order."""
    sample: list[int] = []
    for position, files in enumerate(files_by_class[:UDCDR_CLASSES]):
        sample += [files[i] for i in permutation(position, len(files))[: int(share * len(files))]]
    return sample
