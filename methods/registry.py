"""One lazy registry for everything that is chosen by name: methods, datasets, protocols.

An entry is a name and a target ``"module:attribute"`` that is imported when it is first asked for, so listing names and
``--help`` stay fast and import no torch. Third parties add entries through entry points (no edit here)::

    [project.entry-points."ucdr_bench.methods"]
    my_method = "my_package.my_method:MyMethod"
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class UnknownNameError(KeyError):
    """A name that no entry has; the message names the nearest ones."""

    def __str__(self) -> str:
        return str(self.args[0])


class DuplicateNameError(ValueError):
    """A name registered twice; the message names both places."""


@dataclass(frozen=True)
class Entry:
    """A registered name: ``target`` is ``"module:attribute"`` or the object; ``origin``: where it was registered.

    ``by_default`` False keeps it out of ``all``; it is then chosen by name only.
    """

    name: str
    target: Any
    origin: str
    summary: str = ""
    by_default: bool = True


class Registry(Generic[T]):
    """Names to lazily imported objects of one kind (``kind`` is the singular used in messages)."""

    def __init__(self, kind: str, entry_point_group: str | None = None) -> None:
        self.kind = kind
        self._group = entry_point_group
        self._entries: dict[str, Entry] = {}
        self._loaded: dict[str, T] = {}
        self._scanned = entry_point_group is None

    def add(
        self, name: str, target: T | str, *, summary: str = "", origin: str | None = None, by_default: bool = True
    ) -> None:
        """Register ``name`` for an object or a lazy ``"module:attribute"``; ``by_default`` as in :class:`Entry`.

        Raises :class:`DuplicateNameError`, naming both places, if the name is taken by another target.
        """
        origin = origin or _caller()
        taken = self._entries.get(name)
        if taken is not None:
            if taken.target == target or _same_class(taken.target, target):
                return
            raise DuplicateNameError(f"{self.kind} {name!r} is registered at {taken.origin} and again at {origin}")
        self._entries[name] = Entry(name, target, origin, summary, by_default)

    def register(self, name: str, *, summary: str = "") -> Callable[[T], T]:
        """Decorator form of :meth:`add`."""
        origin = _caller()

        def decorate(target: T) -> T:
            self.add(name, target, summary=summary, origin=origin)
            return target

        return decorate

    def remove(self, name: str) -> None:
        """Take a name out again (tests, notebooks that redefine a class)."""
        self._entries.pop(name, None)
        self._loaded.pop(name, None)

    def names(self) -> list[str]:
        """All names in order of registration (ours first, then entry points); imports nothing of theirs."""
        self._scan()
        return list(self._entries)

    def defaults(self) -> list[str]:
        """The names that ``all`` means."""
        return [entry.name for entry in self.entries() if entry.by_default]

    def entries(self) -> Iterator[Entry]:
        """All entries, unresolved."""
        self._scan()
        return iter(list(self._entries.values()))

    def check(self, name: str) -> None:
        """Raise :class:`UnknownNameError` with the nearest names if ``name`` is not registered; imports nothing."""
        self._scan()
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else f"choose from: {', '.join(self._entries)}"
            raise UnknownNameError(f"unknown {self.kind} {name!r}; {hint}")

    def get(self, name: str) -> T:
        """The object behind a name.

        Raises :class:`UnknownNameError` with the nearest names, or ``ImportError`` naming the entry's origin if its
        module cannot be imported.
        """
        self.check(name)
        if name not in self._loaded:
            entry = self._entries[name]
            self._loaded[name] = _resolve(entry, self.kind)
        return self._loaded[name]

    def _scan(self) -> None:
        if self._scanned or self._group is None:
            return
        self._scanned = True
        for point in importlib.metadata.entry_points(group=self._group):
            package = point.dist.name if point.dist else "?"
            self.add(point.name, point.value, origin=f"entry point of {package}")


def _same_class(first: Any, second: Any) -> bool:
    """True when the two targets are one class, e.g. registered lazily by us and again by its own decorator."""

    def path(target: Any) -> str:
        return target if isinstance(target, str) else f"{target.__module__}:{getattr(target, '__qualname__', '')}"

    return path(first) == path(second)


def _resolve(entry: Entry, kind: str) -> Any:
    if not isinstance(entry.target, str):
        return entry.target
    module, _, attribute = entry.target.partition(":")
    try:
        target: Any = importlib.import_module(module)
        for part in attribute.split(".") if attribute else ():
            target = getattr(target, part)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"{kind} {entry.name!r} ({entry.origin}): cannot load {entry.target}: {error}") from error
    return target


def _caller() -> str:
    frame = sys._getframe(2)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


#: All methods. Third parties: entry-point group ``ucdr_bench.methods``.
METHODS: Registry = Registry("method", "ucdr_bench.methods")

for _name, _target, _summary in (
    ("random", "methods.floors:RandomEmbedding", "floor: a random vector for each image"),
    ("constant", "methods.floors:ConstantEmbedding", "floor: the same vector for every image"),
    ("raw_pixel", "methods.floors:RawPixel", "floor: the image itself at 16 x 16"),
    ("zero_shot", "methods.zero_shot:ZeroShot", "CLIP as it is, 'a photo of a {}'"),
    ("zero_shot_domain", "methods.zero_shot_domain:ZeroShotDomain", "CLIP as it is, 'a {domain} of a {class}'"),
    ("linear_probe", "methods.linear_probe:LinearProbe", "a linear map of frozen image features, image-text loss"),
    ("metric_head", "methods.metric_head:MetricHead", "a linear map of frozen image features, contrastive loss"),
    ("full_finetune", "methods.full_finetune:FullFinetune", "CLIP's vision tower trained with the image-text loss"),
    ("coop", "methods.coop:CoOp", "16 learned context vectors before the class name"),
    ("vpt_shallow", "methods.vpt:VPTShallow", "visual prompts at the tower's input"),
    ("vpt_deep", "methods.vpt:VPTDeep", "visual prompts at every block's input"),
    ("lora", "methods.lora:LoRA", "low-rank adapters on the attention of both towers (peft)"),
    ("bitfit", "methods.bitfit:BitFit", "the biases of CLIP's vision tower"),
    ("ln_tuning", "methods.ln_tuning:LnTuning", "the LayerNorms of CLIP's vision tower"),
    ("clip_adapter", "methods.clip_adapter:ClipAdapter", "a bottleneck behind frozen features, blended with them"),
    ("tip_adapter", "methods.tip_adapter:TipAdapter", "a cache of labelled images beside CLIP's texts, not trained"),
    ("tip_adapter_f", "methods.tip_adapter:TipAdapterF", "the same, its keys trained"),
    ("sketch_lvm", "methods.sketch_lvm:SketchLvm", "prompts of each domain and LayerNorms under a triplet loss"),
    ("cocoop", "methods.cocoop:CoCoOp", "learned context that a small network shifts for each image"),
    ("maple", "methods.maple:MaPLe", "MaPLe: deep prompts in both towers, coupled by linear maps"),
    ("ivlp", "methods.maple:IVLP", "deep prompts in both towers, independent of each other"),
    ("promptsrc", "methods.promptsrc:PromptSRC", "PromptSRC: prompts of both towers held to frozen CLIP"),
    ("dapl", "methods.dapl:DAPL", "DAPL: context for all domains and for each, pseudo-labelled target"),
    ("pda", "methods.pda:PDA", "PDA: prompts of both towers, features aligned by banks of source and target"),
    ("cmkd", "methods.cmkd:CMKD", "CMKD: the vision tower and a head, taught by CLIP's texts on target images"),
    ("pros", "methods.pros:ProS", "ProS: prompting to simulate"),
    ("ucdr_adapter", "methods.ucdr_adapter:UCDRAdapter", "UCDR-Adapter: domain and class prompts, then generated ones"),
    ("ad_clip", "methods.ad_clip:AdClip", "AD-CLIP: prompts written from an image's style and content"),
    ("sre_clip", "methods.sre_clip:SreClip", "SRE-CLIP: batch attention and prototypes from the WordNet graph"),
):
    METHODS.add(_name, _target, summary=_summary)


def register(name: str, *, summary: str = "") -> Callable[[Any], Any]:
    """``@register("name")``: make a :class:`~methods.interface.Method` subclass available by name."""
    return METHODS.register(name, summary=summary)


def get(name: str) -> Any:
    """The method class of a name; raises :class:`UnknownNameError` with the nearest names."""
    return METHODS.get(name)


def names() -> list[str]:
    """All method names."""
    return METHODS.names()
