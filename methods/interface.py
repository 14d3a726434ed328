"""The interface of a method: ``fit`` on a task's training data, then encode images, class names and class scores.

A protocol gives a method a :class:`TrainingData`, which holds everything the method may see and nothing else, and later
images and class names to encode. Images are always RGB in [0, 1] at the backbone's resolution, ``[B, 3, H, W]``;
normalisation belongs to the method. No method imports anything of data sets, protocols or results.
"""

from __future__ import annotations

import dataclasses
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from methods.cards import Deviation, MethodCard, Similarity
from methods.cards.model_card import ModelScore, model_card
from methods.parts.capabilities import Capability, shortfall
from methods.parts.memory import aligned
from methods.parts.parallel import agree, processes

if TYPE_CHECKING:
    from methods.parts.backbone import Backbone

T = TypeVar("T")

__all__ = [
    "Deviation",
    "FitReport",
    "Images",
    "Log",
    "Method",
    "MethodCard",
    "NoConfig",
    "NotApplicableError",
    "NotFittedError",
    "Similarity",
    "TrainingData",
    "WithheldError",
    "added",
    "restore",
    "stated",
    "unit_length",
]


def added(default: Any) -> Any:
    """The default of a ``Config``'s setting that is newer than stored records: ``shift: float = added(0.0)``.

    At its default it is left out of a score's key and record (:func:`stated`), which are then those from before.
    """
    return field(default=default, metadata={"added": True})


def stated(config: Any) -> dict[str, Any]:
    """The settings of a config by name, as keys and records state them: all, without :func:`added` ones at default."""
    values = dataclasses.asdict(config)
    for one in dataclasses.fields(config):
        if one.metadata.get("added") and values[one.name] == one.default:
            del values[one.name]
    return values


#: ``log(stage=..., step=..., loss=...)``: ``fit`` calls it with the numbers of a step; the record stores them.
Log = Callable[..., None]


class WithheldError(RuntimeError):
    """A method asked for something its protocol withholds (target labels, test classes, unseen names, ...)."""


class NotApplicableError(RuntimeError):
    """A method defines no result for a request, e.g. a pixel baseline for a class it has no images of, or a method that
    changes CLIP's tokens on a backbone that has none."""


class NotFittedError(RuntimeError):
    """Something learned was used before ``fit`` or ``load``."""


class Images(ABC):
    """A fixed, ordered set of N images, decoded when asked for."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def pixels(self, index: Tensor) -> Tensor:
        """RGB in [0, 1] of the images at ``index [B]`` (int64, 0 <= index < N): ``[B, 3, H, W]``.

        Raises :class:`WithheldError` for any other index.
        """

    def stored(self, index: Tensor) -> Tensor:
        """The images at ``index [B]`` as they are kept, ``[B, 3, H, W]``: uint8 RGB, or :meth:`pixels` (the default).

        A quarter of the bytes to copy to a device, where :func:`methods.parts.feeding.unit_range` or the augmentation
        makes the floats.
        """
        return self.pixels(index)

    @property
    @abstractmethod
    def content(self) -> Sequence[str]:
        """N content hashes, one an image; equal images have equal hashes (keys of the feature cache)."""


class TrainingData:
    """Everything a method may see during ``fit``.

    * ``images``, ``labels [N]``, ``domains [N]``: the labelled images; labels index ``class_names``, domains index
      ``domain_names``.
    * ``class_names``: the class names that training may use. In DAZSL they include classes without labelled images.
    * ``unseen_names``: those of them without labelled images, where the protocol shows any.
    * ``synsets``: WordNet synset names of class names, where they are known; ``synsets_published``: whether they come
      with the data set (True) or were chosen for this suite (False), so that the official code did not have them.
    * ``target``: unlabelled target-domain images, where the protocol shows any; ``target_domain``: the name of their
      domain, else None.
    * ``validate(method)``: the protocol's validation score of the method with its current weights (higher is better).
      It uses nothing that the protocol withholds, unless the run selects by ``oracle``.
    * ``select``: what the run selects by; ``last`` asks for the weights of the last step.

    Asking for what the protocol withholds raises :class:`WithheldError`, which names the protocol.
    """

    def __init__(
        self,
        *,
        protocol: str,
        images: Images,
        labels: Tensor,
        domains: Tensor,
        class_names: Sequence[str],
        domain_names: Sequence[str],
        validate: Callable[[Method], float] | None = None,
        target: Images | None = None,
        synsets: Mapping[str, str] | None = None,
        synsets_published: bool = True,
        select: str = "val",
        target_domain: str | None = None,
    ) -> None:
        if not len(images) == len(labels) == len(domains):
            raise ValueError(
                f"{protocol}: {len(images)} images, {len(labels)} labels and {len(domains)} domains do not match"
            )
        self.protocol = protocol
        self.images = images
        self.labels = labels
        self.domains = domains
        self.class_names = tuple(class_names)
        self.domain_names = tuple(domain_names)
        self.synsets = dict(synsets or {})
        self.synsets_published = synsets_published
        self.select = select
        self.target_domain = target_domain
        self._validate = validate
        self._target = target

    @property
    def has_target(self) -> bool:
        """Whether the protocol shows unlabelled target images."""
        return self._target is not None

    @property
    def target(self) -> Images:
        """The unlabelled target images; raises :class:`WithheldError` where the protocol shows none."""
        if self._target is None:
            raise WithheldError(f"{self.protocol} shows no target images during training; use has_target first")
        return self._target

    @property
    def target_labels(self) -> Tensor:
        """Always raises :class:`WithheldError`: no protocol shows target labels."""
        raise WithheldError(f"{self.protocol} withholds target labels from every method")

    @property
    def labelled_classes(self) -> Tensor:
        """Sorted indices into ``class_names`` of the classes that have labelled images (the seen classes)."""
        return torch.unique(self.labels)

    @property
    def unseen_names(self) -> tuple[str, ...]:
        """Names of the classes without labelled images; :class:`WithheldError` where the protocol shows none."""
        seen = set(self.labelled_classes.tolist())
        names = tuple(name for number, name in enumerate(self.class_names) if number not in seen)
        if not names:
            raise WithheldError(f"{self.protocol} shows no names of classes without labelled images")
        return names

    def validate(self, method: Method) -> float:
        """Validation score of the method's current weights, higher is better; NaN without validation data.

        Processes that train together all get the first process's score.
        """
        score = float("nan") if self._validate is None else self._validate(method)
        return score if processes() == 1 else agree(score, method.device)


def unit_length(embeddings: Tensor) -> Tensor:
    """Embeddings ``[N, D]``, L2-normalised unless the length of every row is 1 already (to 1 %)."""
    lengths = embeddings.detach().float().norm(dim=-1)
    return embeddings if bool(((lengths - 1).abs() <= 0.01).all()) else F.normalize(embeddings, dim=-1)


@dataclass
class FitReport:
    """What ``fit`` did: optimiser steps, the step kept, curves, and the number of parameters it trained.

    ``validations_allowed``: how many validations the budget has room for (0: not known); ``out_of_patience``: whether
    training ended before its budget because validation gained nothing more.
    """

    steps: int = 0
    selected_step: int = 0
    trainable_parameters: int = 0
    seconds: float = 0.0
    losses: list[dict[str, float | int | str]] = field(default_factory=list)
    validation: list[dict[str, float | int]] = field(default_factory=list)
    validations_allowed: int = 0
    out_of_patience: bool = False


@dataclass(frozen=True)
class NoConfig:
    """A method without settings."""


class Method(ABC):
    """A method: construct it on a backbone, ``fit`` it, then encode.

    Subclasses set ``card`` and ``Config`` (a frozen dataclass whose defaults are the paper's), and write ``fit``,
    ``encode_images`` and ``encode_classes``. They declare what ``fit`` learns: the tensors (:meth:`learned_tensors`),
    what is kept beside them (``fact_names``), and the untrained parts that a checkpoint's tensors are copied into
    (:meth:`prepare_state`); the base class checks, saves and loads them. They may set

    * ``needs``: what the backbone must offer, ``features``, ``styles`` or ``tokens``
      (:mod:`methods.parts.capabilities`; default: ``tokens``), and :meth:`needs_of` where it depends on the config;
    * ``trained = False`` when the embedding of an image does not depend on the training data, so that encoded images
      are shared between tasks (``fit`` still runs once a task: a floor averages its class means there);
    * ``variants``: named changes to the defaults, e.g. ``{"official": {"mask": False}}``; ``paper`` is the defaults;
    * ``ablations``: named changes to the defaults, one factor each, for ``python -m benchmarks.ablate``;
    * ``one_process``: why its training needs a single process, "" if it can be spread over several: its loss is a mean
      over the images of a batch, of which each process takes :func:`methods.parts.parallel.share`;
    * ``reads_synsets``: whether its scores depend on the classes' WordNet synsets, which are then part of their key;
    * ``reads_target = False`` when ``fit`` uses no target image and not the target domain's name: it is then shown
      none, and transfers from one source share a fit;
    * ``version``: raise it when a change of the code changes scores, so that stored scores are not taken for new ones.
    """

    card: ClassVar[MethodCard]
    Config: ClassVar[type] = NoConfig
    needs: ClassVar[Capability] = "tokens"
    trained: ClassVar[bool] = True
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    one_process: ClassVar[str] = "it does not declare that its loss is a mean over the images of a batch"
    reads_synsets: ClassVar[bool] = False
    reads_target: ClassVar[bool] = True
    version: ClassVar[int] = 1
    #: Attributes that ``fit`` sets beside the tensors (numbers, texts, tuples of texts), stored as JSON by their names.
    fact_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, backbone: Backbone, config: Any = None, device: str | torch.device | None = None) -> None:
        """``device``: where it computes, which must be where the backbone is (default: there).

        Raises :class:`NotApplicableError` for a backbone that does not offer what the config needs.
        """
        self.backbone = backbone
        self.config = self.Config() if config is None else config
        if not isinstance(self.config, self.Config):
            raise TypeError(f"{self.card.name}: config must be {self.Config.__name__}, not {type(config).__name__}")
        if reason := shortfall(self.card.name, self.needs_of(self.config), backbone.name, backbone.offers):
            raise NotApplicableError(reason)
        self.device = torch.device(backbone.device if device is None else device)

    @classmethod
    def needs_of(cls, config: Any) -> Capability:
        """What a backbone must offer to a method of this config; default: ``needs``."""
        return cls.needs

    @classmethod
    def files(cls, config: Any) -> Mapping[str, Path]:
        """Files and folders that a method of this config reads beside images and backbone, by name; their content is
        part of a score's key. Default: every setting that is the path of something that exists.

        Override it for what no setting names (a database that a library finds). A file need not exist; nothing is
        raised.
        """
        values = {known.name: getattr(config, known.name) for known in dataclasses.fields(config)}
        return {name: Path(value).expanduser() for name, value in values.items() if _is_path(value)}

    @abstractmethod
    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Learn from ``data``; the same seed on the same machine gives the same numbers."""

    @abstractmethod
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Retrieval embeddings ``[B, D]`` of images ``[B, 3, H, W]`` in [0, 1].

        L2-normalised unless ``card.similarity`` is ``sqeuclidean``. On a CPU, several threads may call it at a time
        (after a first call alone): it changes nothing.
        """

    def encode_raw(self, pixels: Tensor) -> Tensor:
        """Embeddings ``[B, D]`` before normalisation, which ``--rules official`` ranks; default: ``encode_images``."""
        return self.encode_images(pixels)

    @abstractmethod
    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """L2-normalised class embeddings ``[C, D]``.

        Raises :class:`NotApplicableError` if the method has no embedding for one of the names.
        """

    def classify(self, pixels: Tensor, names: Sequence[str]) -> Tensor:
        """Logits ``[B, C]`` of images over class names; default: logit scale times cosine."""
        images = F.normalize(self.encode_images(pixels), dim=-1)
        return self.logit_scale() * images @ unit_length(self.encode_classes(names)).T

    def logit_scale(self) -> float:
        """Factor from cosine to logit; the backbone's, unless a method overrides it."""
        return float(self.backbone.logit_scale)

    def total_parameters(self) -> int:
        """Number of weights in use: the backbone's, and those learned beside them."""
        weights = dict(self.backbone.model.named_parameters())
        beside = sum(value.numel() for name, value in self.tensors().items() if name not in weights)
        return sum(value.numel() for value in weights.values()) + beside

    # --- state ---

    def fitted(self, part: T | None) -> T:
        """``part`` of what ``fit`` learns; raises :class:`NotFittedError` if it is None, as before ``fit``."""
        if part is None:
            raise NotFittedError(f"{self.card.name} is not fitted: call fit or load first")
        return part

    def learned_tensors(self) -> Mapping[str, Tensor]:
        """The learned tensors by name, those in use and no copies; frozen backbone weights are not part of it.

        Raises :class:`NotFittedError` before ``fit`` (through :meth:`fitted`). Default: nothing is learned.
        """
        return {}

    def prepare_state(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Build the untrained parts that a checkpoint's ``tensors`` are copied into; the facts are set already.

        Called before every :meth:`restore`, so it does nothing where such parts exist. Default: nothing to build.
        """

    def tensors(self) -> dict[str, Tensor]:
        """Everything learned, by name (what ``save`` stores)."""
        return {name: value.detach() for name, value in self.learned_tensors().items()}

    def facts(self) -> dict[str, Any]:
        """What JSON can hold of ``fact_names``: goes with the tensors, e.g. class names in training order."""
        values = {name: getattr(self, name) for name in self.fact_names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def load_tensors(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Put back what :meth:`tensors` and :meth:`facts` gave; the tensors may be on another device.

        Raises ``ValueError`` if names or shapes are not those of this config and backbone.
        """
        for name in self.fact_names:
            setattr(self, name, tuple(facts[name]) if isinstance(facts[name], list) else facts[name])
        self.prepare_state(tensors)
        restore(self, self.learned_tensors(), tensors)

    def save(self, path: Path | str, *, scores: Sequence[ModelScore] | None = None) -> None:
        """Write ``PATH.safetensors`` and ``PATH.json`` (method, config, facts, and which backbone, not its weights).

        With ``scores``, be they none (``()``), also ``README.md`` in the same folder: the model card that a repository
        of the Hugging Face Hub shows (:func:`methods.cards.model_card.model_card`).
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in self.tensors().items()}, f"{path}.safetensors")
        record: dict[str, Any] = {
            "method": self.card.name,
            "config": dataclasses.asdict(self.config),
            "backbone": self.backbone.weights_hash,
            "identity": self.backbone.identity,
            "backbone_name": self.backbone.name,
            "preprocessing": self.backbone.preprocessing,
            "precision": self.backbone.precision,
            "facts": self.facts(),
        }
        Path(f"{path}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if scores is not None:
            text = model_card(self.card, record["config"], self.backbone.name, scores)
            path.with_name("README.md").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str, backbone: Backbone, device: str | torch.device | None = None) -> Method:
        """Read what :meth:`save` wrote, on whatever device that was; ``device`` as in the constructor.

        Raises ``ValueError`` if the file is of another method or was trained on another backbone: other weights or,
        where the file records them, another config or tokenizer.
        """
        record = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
        if record["method"] != cls.card.name:
            raise ValueError(f"{path}.json is a checkpoint of {record['method']}, not of {cls.card.name}")
        if record["backbone"] != backbone.weights_hash:
            which = record.get("backbone_name") or "the one it was trained on"
            raise ValueError(f"{path}.json was trained on other backbone weights; load {which} with --backbone")
        for part, value in record.get("identity", {}).items():
            if backbone.identity.get(part) != value:
                what = part.removesuffix("_hash")
                raise ValueError(f"{path}.json was trained on a backbone with another {what}; load that one")
        config = {k: tuple(v) if isinstance(v, list) else v for k, v in record["config"].items()}
        method = cls(backbone, cls.Config(**config), device)
        tensors = load_file(f"{path}.safetensors")  # on the CPU: the method moves them
        method.load_tensors({name: aligned(tensor) for name, tensor in tensors.items()}, record["facts"])
        return method


def restore(method: Method, current: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into the method's ``current`` ones.

    Raises ``ValueError`` if names or shapes differ.
    """
    if {name: value.shape for name, value in current.items()} != {name: value.shape for name, value in tensors.items()}:
        raise ValueError(
            f"{method.card.name}: the checkpoint's tensors do not fit this config and backbone; load it with those it"
            " was trained with"
        )
    with torch.no_grad():
        for name, value in current.items():
            value.copy_(tensors[name])


def _is_path(value: Any) -> bool:
    """Whether a setting is the path of something that exists; a plain word is never one, whatever the folder holds."""
    if not isinstance(value, Path) and not (isinstance(value, str) and re.search(r"[./\\]", value)):
        return False
    try:
        return Path(value).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False
