"""What only the released code of SRE-CLIP does; each switch has its row in methods/cards/sre_clip.toml.

Shapes: B images, C classes, d width of the adapter, F width of a word vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.parts.backbone import PromptBackbone
from methods.parts.senses import WordNetError

#: Where the released code does something else than the paper, as changes to the config.
SETTINGS: dict[str, Any] = {
    "class_vectors": "words",
    "synonyms": False,
    "residual": False,
    "align_weight": 0.0,
    "pair_reading": "diagonal",
    "pair_list": "half",
    "srs_scale": "logits",
    "srs_class": "predicted",
    "srs_weight": 0.01,
    "target_srs_weight": 0.0,
    "memory_surplus": True,
    "eval_attention": "batch",
    "unit_features": False,
    "senses": "first",
}

# --- structure loss ---------------------------------------------------------------------------------------------------


def compared_distances(
    before: Tensor, after: Tensor, shuffle: torch.Generator | None, *, diagonal: bool
) -> tuple[Tensor, Tensor]:
    """Two distance matrices [C, C] -> what L_pair compares of them: [C, C] each, or [1, C] each if ``diagonal``.

    ``shuffle`` puts the classes in a random order. ``diagonal``: the distances of classes to themselves alone, which
    the released code compares.
    """
    if shuffle is not None:
        order = torch.randperm(len(before), generator=shuffle)
        there = order.to(after.device, non_blocking=True)
        before, after = before[order][:, order], after[there][:, there]
    if diagonal:
        before, after = before.diagonal().unsqueeze(0), after.diagonal().unsqueeze(0)
    return before, after


def l2_loss(before: Tensor, after: Tensor) -> Tensor:
    """Squared difference of two distance matrices [C, C], each divided by its mean (no released script uses it)."""
    return F.mse_loss(after / after.mean(), before / before.mean())


def entropy_loss(before: Tensor, after: Tensor) -> Tensor:
    """KL divergence between the rows' softmax of closeness, before and after [C, C], summed (no script uses it)."""
    before, after = before / before.mean(), after / after.mean()
    target, guess = before.max() - before, after.max() - after
    return F.kl_div(guess.log_softmax(dim=1), target.softmax(dim=1), reduction="sum")


#: Structure losses that the released code defines and does not use, by the value of ``structure``.
UNUSED_STRUCTURES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"l2": l2_loss, "entropy": entropy_loss}

# --- memory term ------------------------------------------------------------------------------------------------------


class SurplusMemory:
    """The released store of the memory term, [d] a row, without gradients: it may grow beyond its capacity.

    While it has fewer rows than ``capacity``, whole batches are appended. Then rows from a pointer on are replaced; the
    pointer returns to 0 if the next batch would not fit below the capacity, so that later rows are never replaced.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: Tensor | None = None
        self.pointer = 0

    def push(self, rows: Tensor) -> bool:
        """Store a batch [B, d]; True if the store was full before."""
        rows = rows.detach()
        if self.rows is None or len(self.rows) < self.capacity:
            self.rows = rows if self.rows is None else torch.cat([self.rows, rows])
            return False
        places = torch.arange(self.pointer, self.pointer + len(rows), device=rows.device)
        self.rows = self.rows.index_copy(0, places, rows)
        self.pointer += len(rows)
        if self.pointer + len(rows) > self.capacity:
            self.pointer = 0
        return True


# --- word vectors -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def word_vectors(backbone: PromptBackbone, names: Sequence[str], file: str) -> Tensor:
    """A word vector for each of n names -> [n, F], L2-normalised.

    From ``file``, or without one ("") the mean CLIP token embedding of a name: the released word vectors are not
    published.
    """
    if file:
        vectors = read_word_vectors(file, names).to(backbone.device)
    else:
        ids = [torch.tensor(backbone.token_ids(name), device=backbone.device) for name in names]
        vectors = torch.stack([backbone.embed_tokens(row).mean(dim=0) for row in ids])
    return F.normalize(vectors, dim=-1)


def read_word_vectors(path: Path | str, names: Sequence[str]) -> Tensor:
    """Vectors of N names from a text file of word vectors (a line: word, then the numbers, as GloVe's) -> [N, d].

    A name of several words gets the mean of those that the file has.

    Raises:
        WordNetError: the file is missing or broken, or has no word of a name.
    """
    split = [name.lower().replace("_", " ").replace("-", " ").split() for name in names]
    wanted = {word for words in split for word in words}
    vectors: dict[str, Tensor] = {}
    try:
        with Path(path).open(encoding="utf-8") as lines:
            for line in lines:
                word, _, numbers = line.partition(" ")
                if word in wanted:
                    vectors[word] = torch.tensor([float(number) for number in numbers.split()])
        means = [torch.stack([vectors[word] for word in words if word in vectors]).mean(dim=0) for words in split]
        return torch.stack(means)
    except (OSError, ValueError) as error:
        raise WordNetError(f"word vectors {path} cannot be read ({error}): give a GloVe text file") from error
    except RuntimeError:
        missing = next((n for n, words in zip(names, split, strict=True) if not vectors.keys() & set(words)), "")
        raise WordNetError(
            f"word vectors {path} have no vector for {missing!r}, or vectors of several lengths"
        ) from None
