"""Text prompts with learned context, and the text tower that computes their common prefix once.

A prompt is ``[start] words and context slots [end]``. Prompts of different classes begin with the same tokens: in CoOp
and AD-CLIP the start token and the whole learned context, in ProS and UCDR-Adapter ``a photo of``. The text tower is
causal, so the states of that common prefix do not depend on the class: :func:`encode_prompts` computes its keys and
values once (or once per image, where the context depends on the image) and lets every class's suffix attend to them.
It also runs classes of equal length together and cuts each such part at its longest end (docs/methods.md, "Exact
speed", 1 and 2). ``shared_prefix=False`` is the plain path with the same numbers.

Shapes: C classes, L context length, m context slots, v text width, B images, E embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from methods.parts.backbone import BackboneError, PromptBackbone
from methods.parts.bounds import CONTEXT, NAME, fill
from methods.parts.checkpointing import CHECKPOINT_ABOVE, PIECE_BYTES, sequence_bytes

#: Classes of one length wait for longer ones until they are this many: smaller parts cost more than their padding.
SMALLEST_PART = 8


def class_text(name: str) -> str:
    """A class name as it is written in a prompt: underscores become spaces."""
    return " ".join(name.replace("_", " ").split())


def check_names(names: Sequence[str]) -> None:
    """Raises :class:`~methods.parts.backbone.BackboneError` for one text, whose letters would pass for class names."""
    if isinstance(names, str):
        raise BackboneError(f"class names are a list: write [{names!r}], not {names!r}")


@dataclass(frozen=True)
class PromptTemplate:
    """The prompts of C classes: token ids, and where the m learned context vectors go.

    ids: [C, L] with start and end, zero-padded. The ids in context slots are placeholders and are never embedded.
    slots: [C, m], the positions of the context vectors in each prompt, increasing.
    eot: [C], the position of the end of text, where a prompt is read.
    prefix_length: number of leading positions that are the same in all C prompts (at least the start token).
    prefix_slots: how many of the m slots are in that prefix.
    longest: the largest eot.
    """

    ids: Tensor
    slots: Tensor
    eot: Tensor
    prefix_length: int
    prefix_slots: int
    longest: int

    @classmethod
    def build(cls, backbone: PromptBackbone, names: Sequence[str], template: str, context: int = 0) -> Self:
        """Write ``template`` for every class.

        ``template`` holds ``{name}`` and, for learned context, ``{context}``, the place of ``context`` slots, set
        off by spaces: ``"{context} {name}."``, ``"a photo of {name} from {context} domain."``.

        Raises:
            BackboneError: a prompt longer than the backbone's context, or a template without its place-holders.
        """
        check_names(names)
        if not names:
            raise BackboneError("a prompt needs at least one class name")
        template = template.replace("{}", NAME)
        if template.count(NAME) != 1 or template.count(CONTEXT) != (1 if context else 0):
            raise BackboneError(
                f"prompt template {template!r} with {context} context tokens: write {NAME} once, and {CONTEXT} once"
                " where there are context tokens"
            )
        before, _, after = template.partition(CONTEXT)
        ids = torch.zeros(len(names), backbone.context_length, dtype=torch.long)
        slots = torch.zeros(len(names), context, dtype=torch.long)
        for row, name in enumerate(names):
            head = [backbone.start_id, *_words(backbone, before.replace(NAME, class_text(name)))]
            tail = [*_words(backbone, after.replace(NAME, class_text(name))), backbone.end_id]
            tokens = [*head, *[0] * context, *tail]
            if len(tokens) > backbone.context_length:
                raise BackboneError(_too_long(backbone, name, len(tokens), context))
            ids[row, : len(tokens)] = torch.tensor(tokens)
            slots[row] = torch.arange(len(head), len(head) + context)
        return cls.from_ids(backbone, ids, slots)

    @classmethod
    def opening(cls, backbone: PromptBackbone, names: Sequence[str], template: str, context: int) -> Self:
        """The classes' texts with learned context in the place of the first ``context`` tokens of the template.

        The template's words before the class name are what is replaced; where they are fewer tokens, the context is
        longer than they are. ``"a photo of a {name}."`` with 2: ``[start] X_1 X_2 of a {name}. [end]``.

        Raises:
            BackboneError: a prompt longer than the backbone's context.
        """
        check_names(names)
        if not names:
            raise BackboneError("a prompt needs at least one class name")
        head = opening_ids(backbone, template)
        before = template.replace("{}", NAME).partition(NAME)[0]
        ids = torch.zeros(len(names), backbone.context_length, dtype=torch.long)
        for row, name in enumerate(names):
            words = _words(backbone, fill(template, class_text(name))[len(before) :])
            tokens = [backbone.start_id, *[0] * context, *head[context:], *words, backbone.end_id]
            if len(tokens) > backbone.context_length:
                raise BackboneError(_too_long(backbone, name, len(tokens), context))
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return cls.from_ids(backbone, ids, torch.arange(1, 1 + context).expand(len(names), -1))

    @classmethod
    def from_ids(cls, backbone: PromptBackbone, ids: Tensor, slots: Tensor) -> Self:
        """Prompts from token ids [C, L] (end of text included) and context slots [C, m]; m may be 0."""
        ids = ids.long().to(backbone.device)
        slots = slots.long().to(backbone.device)
        eot = backbone.eot_positions(ids)
        if slots.shape[1] and bool((slots.amax(dim=1) >= eot).any()):
            raise BackboneError("a context slot is behind the end of text: check the prompt's slots")
        marked = ids.scatter(1, slots, -1)
        same = (marked == marked[:1]).all(dim=0).long()
        common = int(same.cumprod(dim=0).sum())
        length = min(common, int(eot.min()))
        return cls(ids, slots, eot, length, int((slots[0] < length).sum()), int(eot.max()))

    def select(self, classes: Sequence[int] | Tensor) -> Self:
        """The prompts of some of the classes, in the given order."""
        index = torch.as_tensor(classes, dtype=torch.long, device=self.ids.device)
        eot = self.eot[index]
        return type(self)(
            self.ids[index], self.slots[index], eot, self.prefix_length, self.prefix_slots, int(eot.max())
        )

    @cached_property
    def leading_slots(self) -> bool:
        """Whether every prompt's slots are right behind its start token."""
        leading = torch.arange(1, 1 + self.context, device=self.slots.device)
        return bool((self.slots == leading).all())

    @cached_property
    def by_length(self) -> list[tuple[Tensor, "PromptTemplate"]]:
        """The classes, shortest prompts first, in parts of equal length: each part's class indices and prompts.

        A part is cut at its longest prompt, so that one long class name does not make all classes as long.
        """
        order = self.eot.cpu().argsort(stable=True)
        lengths = self.eot.cpu()[order].tolist()
        bounds = [0]
        for place in range(1, len(lengths)):
            if lengths[place] != lengths[place - 1] and place - bounds[-1] >= SMALLEST_PART:
                bounds.append(place)
        parts = [order[start:end] for start, end in zip(bounds, [*bounds[1:], len(lengths)], strict=True)]
        return [(index.to(self.ids.device), self.select(index)) for index in parts]

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def context(self) -> int:
        """Number m of learned context vectors."""
        return self.slots.shape[1]


def opening_ids(backbone: PromptBackbone, template: str) -> list[int]:
    """The tokens of a template's words before the class name, of which :meth:`PromptTemplate.opening` replaces some."""
    return _words(backbone, template.replace("{}", NAME).partition(NAME)[0])


def _too_long(backbone: PromptBackbone, name: str, tokens: int, context: int) -> str:
    return (
        f"the prompt of class {name!r} has {tokens} tokens, backbone {backbone.name} reads"
        f" {backbone.context_length}: use fewer context tokens (now {context}) or a shorter name"
    )


def _words(backbone: PromptBackbone, text: str) -> list[int]:
    return backbone.token_ids(text) if text.strip() else []


def _with_context(embedded: Tensor, slots: Tensor, context: Tensor) -> Tensor:
    """Put the context [S, m, v] into embedded [C, T, v] at slots [C, m] -> [S, C, T, v]."""
    filled = embedded.expand(context.shape[0], -1, -1, -1).clone()
    rows = torch.arange(embedded.shape[0], device=embedded.device)[:, None]
    filled[:, rows, slots] = context[:, None].to(filled.dtype)
    return filled


def encode_prompts(
    backbone: PromptBackbone,
    prompts: PromptTemplate,
    context: Tensor | None = None,
    *,
    projection: Tensor | None = None,
    deep_prompts: Tensor | None = None,
    shared_prefix: bool = True,
    cut: bool = True,
    class_chunk: int | None = None,
) -> Tensor:
    """Text features of the prompts with ``context`` in their slots, not L2-normalised.

    ``context`` [m, v], the same for all classes -> [C, E]; or [B, m, v], one per image -> [B, C, E]. Gradients flow
    into it and into ``projection`` [E, v], which replaces the frozen text projection.

    ``deep_prompts`` [d, m, v]: fresh context at the input of blocks 1..d, in the place of the last block's outputs; the
    slots are then those right behind the start token (:meth:`PromptTemplate.opening`).

    ``shared_prefix=False`` runs every prompt from its start; ``cut=False`` (only there) also runs the tokens behind the
    end of text: both are the plain path, with the same numbers, which a backbone without ``causal_text`` always takes.
    ``class_chunk`` bounds memory: that many classes at a time. Where a gradient is wanted and the suffixes' activations
    would exceed a bound (:mod:`methods.parts.checkpointing`), pieces of the classes are computed again in the backward
    pass, so that memory no longer grows with the classes; values and gradients are the same but for rounding.

    Raises:
        BackboneError: the context's shape, or that of deep prompts, does not fit the prompts' slots.
    """
    if context is None:
        context = backbone.text_projection.new_zeros(0, backbone.text_width)
    if context.ndim not in (2, 3) or tuple(context.shape[-2:]) != (prompts.context, backbone.text_width):
        raise BackboneError(
            f"context has shape {tuple(context.shape)}, the prompts take [{prompts.context}, {backbone.text_width}]"
            f" or [B, {prompts.context}, {backbone.text_width}]"
        )
    if deep_prompts is not None and (deep_prompts.shape[-2] != prompts.context or not prompts.leading_slots):
        raise BackboneError("deep prompts need as many slots, right behind the start token: use them with opening")
    if shared_prefix and not cut:
        raise BackboneError("cut=False is the plain path: use it with shared_prefix=False")
    if not backbone.causal_text:
        shared_prefix = cut = False
    per_image = context if context.ndim == 3 else context[None]
    grouped = prompts.by_length
    trained = torch.is_grad_enabled() and (context.requires_grad or backbone.text.positions.requires_grad)
    kept = sum(suffix_bytes(backbone, part, len(per_image)) * len(part) for _, part in grouped)
    checkpointed = shared_prefix and trained and kept > CHECKPOINT_ABOVE
    if checkpointed:
        class_chunk = min(
            class_chunk or len(prompts), max(1, PIECE_BYTES // suffix_bytes(backbone, prompts, len(per_image)))
        )
    if class_chunk is not None:
        grouped = [
            (piece, part if len(part) <= class_chunk else prompts.select(piece))
            for index, part in grouped
            for piece in index.split(class_chunk)
        ]
    parts = [part for _, part in grouped]
    if shared_prefix:
        read = _read_behind_prefix(backbone, prompts, parts, per_image, deep_prompts, checkpointed=checkpointed)
    else:
        read = torch.cat([_read_plain(backbone, part, per_image, deep_prompts, cut=cut) for part in parts], dim=1)
    read = read[:, torch.cat([index for index, _ in grouped]).argsort()]  # back in the order of the classes
    features = backbone.project_text(read, projection=projection)
    return features if context.ndim == 3 else features[0]


def _read_plain(
    backbone: PromptBackbone, prompts: PromptTemplate, context: Tensor, deep_prompts: Tensor | None, *, cut: bool
) -> Tensor:
    """Every prompt by itself, context [S, m, v] -> [S, C, v]."""
    embedded = _with_context(backbone.embed_tokens(prompts.ids), prompts.slots, context)
    with backbone.autocast():
        eot = prompts.eot.repeat(context.shape[0])
        read = backbone.text.run(embedded.flatten(0, 1), eot, cut=cut, deep_prompts=deep_prompts)
    return read.unflatten(0, (context.shape[0], len(prompts)))


def suffix_bytes(backbone: PromptBackbone, prompts: PromptTemplate, images: int) -> int:
    """About the bytes that the longest suffix of one class, for ``images`` contexts, keeps for backward."""
    return images * sequence_bytes(
        prompts.longest + 1 - prompts.prefix_length,
        prompts.longest + 1,
        width=backbone.text_width,
        heads=int(backbone.model.text_model.config.num_attention_heads),
        layers=backbone.text_layers,
        bf16=backbone.precision == "bf16",
    )


def _read_behind_prefix(
    backbone: PromptBackbone,
    prompts: PromptTemplate,
    parts: Sequence[PromptTemplate],
    context: Tensor,
    deep_prompts: Tensor | None,
    *,
    checkpointed: bool = False,
) -> Tensor:
    """The prefix once, then the suffixes of each part behind it, context [S, m, v] -> [S, C, v].

    ``checkpointed`` keeps of each part its context and result alone, and computes the rest again for backward.
    """
    length, in_prefix = prompts.prefix_length, prompts.prefix_slots
    shared, own = context[:, :in_prefix], context[:, in_prefix:]
    prefix = _with_context(
        backbone.embed_tokens(prompts.ids[:1, :length]),
        prompts.slots[:1, :in_prefix],
        shared if in_prefix else shared[:1],
    )[:, 0]
    with backbone.autocast():
        keys_values = backbone.text.run_prefix(prefix, deep_prompts=deep_prompts)

    def read(part: PromptTemplate) -> Tensor:
        suffix = _with_context(
            backbone.embed_tokens(part.ids[:, length : part.longest + 1]),
            part.slots[:, in_prefix:] - length,
            own if own.shape[1] else own[:1],
        )
        with backbone.autocast():
            return backbone.text.run_after_prefix(keys_values, suffix, part.eot - length)

    if checkpointed:  # nothing in the tower is random
        return torch.cat(
            [checkpoint(read, part, use_reentrant=False, preserve_rng_state=False) for part in parts], dim=1
        )
    return torch.cat([read(part) for part in parts], dim=1)
