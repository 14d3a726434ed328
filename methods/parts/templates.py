"""Texts of classes beyond one template: sets of templates, sentences of each class, and other names of classes.

The embedding of a class is the mean of the unit-length embeddings of its texts, scaled to length 1, as in CLIP's
"Prompt engineering for ImageNet" (Radford et al., ICML 2021, section 3.1.4; the templates are those of the notebook of
that name in the code released with the paper, licence MIT).

Sets of templates, as ``--templates`` takes them:

``imagenet``        the 80 templates of CLIP's ImageNet ensemble
``imagenet_best``   the 7 of them that CLIP's authors chose by forward selection
``FILE.txt``        one template a line, the class name at ``{}``
``FILE.json``       ``{class: [sentence, ...]}``: the texts of each class, as CuPL publishes them (Pratt et al., "What
                    does a platypus look like? Generating customized prompts for zero-shot image classification",
                    ICCV 2023)

A file of class names is JSON too: ``{class: name}``. Classes are matched without regard to case, with spaces for
underscores. Nothing here imports torch before a text is embedded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.parts.bounds import NAME, fill, template_fault

if TYPE_CHECKING:
    from torch import Tensor

#: CLIP's ImageNet ensemble.
IMAGENET: tuple[str, ...] = tuple(
    line.strip()
    for line in """
    a bad photo of a {}.
    a photo of many {}.
    a sculpture of a {}.
    a photo of the hard to see {}.
    a low resolution photo of the {}.
    a rendering of a {}.
    graffiti of a {}.
    a bad photo of the {}.
    a cropped photo of the {}.
    a tattoo of a {}.
    the embroidered {}.
    a photo of a hard to see {}.
    a bright photo of a {}.
    a photo of a clean {}.
    a photo of a dirty {}.
    a dark photo of the {}.
    a drawing of a {}.
    a photo of my {}.
    the plastic {}.
    a photo of the cool {}.
    a close-up photo of a {}.
    a black and white photo of the {}.
    a painting of the {}.
    a painting of a {}.
    a pixelated photo of the {}.
    a sculpture of the {}.
    a bright photo of the {}.
    a cropped photo of a {}.
    a plastic {}.
    a photo of the dirty {}.
    a jpeg corrupted photo of a {}.
    a blurry photo of the {}.
    a photo of the {}.
    a good photo of the {}.
    a rendering of the {}.
    a {} in a video game.
    a photo of one {}.
    a doodle of a {}.
    a close-up photo of the {}.
    a photo of a {}.
    the origami {}.
    the {} in a video game.
    a sketch of a {}.
    a doodle of the {}.
    a origami {}.
    a low resolution photo of a {}.
    the toy {}.
    a rendition of the {}.
    a photo of the clean {}.
    a photo of a large {}.
    a rendition of a {}.
    a photo of a nice {}.
    a photo of a weird {}.
    a blurry photo of a {}.
    a cartoon {}.
    art of a {}.
    a sketch of the {}.
    a embroidered {}.
    a pixelated photo of a {}.
    itap of the {}.
    a jpeg corrupted photo of the {}.
    a good photo of a {}.
    a plushie {}.
    a photo of the nice {}.
    a photo of the small {}.
    a photo of the weird {}.
    the cartoon {}.
    art of the {}.
    a drawing of the {}.
    a photo of the large {}.
    a black and white photo of a {}.
    the plushie {}.
    a dark photo of a {}.
    itap of a {}.
    graffiti of the {}.
    a toy {}.
    itap of my {}.
    a photo of a cool {}.
    a photo of a small {}.
    a tattoo of the {}.
""".strip().splitlines()
)

#: Its first sixty, which PromptSRC's teacher averages, with the class name at ``{name}``.
IMAGENET_60: tuple[str, ...] = tuple(template.replace("{}", NAME) for template in IMAGENET[:60])

#: The seven that forward selection over the 80 picked (same notebook).
IMAGENET_BEST: tuple[str, ...] = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

SETS: Mapping[str, tuple[str, ...]] = {"imagenet": IMAGENET, "imagenet_best": IMAGENET_BEST}


class TextsError(ValueError):
    """A set of templates, or a file of sentences or names, that cannot be used; one line that names file and fix."""


def same(name: str) -> str:
    """A class name as files are searched for it: lower case, spaces for underscores."""
    return " ".join(name.replace("_", " ").split()).casefold()


def templates_of(source: str) -> tuple[str, ...] | Mapping[str, tuple[str, ...]]:
    """The templates of a set or a ``.txt`` file, or the sentences of each class (by :func:`same`) of a ``.json`` file.

    Raises :class:`TextsError` for an unknown set, a file that cannot be read or a line of it that is no template.
    """
    if source in SETS:
        return SETS[source]
    if source == "cupl":
        raise TextsError(
            "'cupl' is a file that CuPL's authors publish, not a set of this suite: give its path, a JSON file"
            " {class: [sentence, ...]}"
        )
    path = Path(source).expanduser()
    if path.suffix == ".json":
        return _sentences(path)
    if path.suffix != ".txt":
        known = ", ".join(SETS)
        raise TextsError(f"{source!r} is no set of templates: take {known}, or the path of a .txt or .json file")
    lines = [line.strip() for line in _read(path).splitlines()]
    templates = tuple(line for line in lines if line and not line.startswith("#"))
    if not templates:
        raise TextsError(f"{path} has no template: write one a line, with {{}} for the class name")
    for template in templates:
        if reason := template_fault(template, 0):
            raise TextsError(f"{path}: the template {reason}")
    return templates


def names_of(source: str) -> Mapping[str, str]:
    """The names of a file ``{class: name}``, by :func:`same` of the class; raises :class:`TextsError`."""
    path = Path(source).expanduser()
    values = _object(path, "{class: name}")
    for name, other in values.items():
        if not isinstance(other, str) or not other.strip():
            raise TextsError(f"{path}: the name of {name!r} is {other!r}; write a text")
    return _by_class(path, values)


def class_texts(
    names: Sequence[str], template: str, templates: str = "", class_names: str = ""
) -> tuple[list[list[str]], list[str]]:
    """The texts of each class, and the classes that the file of sentences does not have.

    ``template`` is filled in where ``templates`` is "", else see :func:`templates_of`; ``class_names`` is a file of
    names (:func:`names_of`) or "". A class that is not in the file of names keeps its name. Raises :class:`TextsError`.
    """
    others = names_of(class_names) if class_names else {}
    found = templates_of(templates) if templates else (template,)
    shown = [others.get(same(name), " ".join(name.replace("_", " ").split())) for name in names]
    if isinstance(found, Mapping):
        of_class = [found.get(same(name), found.get(same(other))) for name, other in zip(names, shown, strict=True)]
        missing = [name for name, texts in zip(names, of_class, strict=True) if texts is None]
        return [list(texts or ()) for texts in of_class], missing
    return [[fill(one, name) for one in found] for name in shown], []


def check_texts(method: str, templates: str, class_names: str) -> None:
    """Raise :class:`TextsError`, which names the method and its setting, unless both can be used ("": not given)."""
    for setting, source, read in (("templates", templates, templates_of), ("class_names", class_names, names_of)):
        try:
            if source:
                read(source)
        except TextsError as error:
            raise TextsError(f"{method}: {setting}: {error}") from error


def mean_embeddings(encode: Callable[[list[str]], Tensor], texts: Sequence[Sequence[str]]) -> Tensor:
    """Unit-length means ``[C, E]`` of the unit-length embeddings of each class's texts; each text is encoded once."""
    import torch
    from torch.nn import functional as F

    distinct = list(dict.fromkeys(text for of_class in texts for text in of_class))
    place = {text: number for number, text in enumerate(distinct)}
    parts = [F.normalize(encode(distinct[at : at + 1024]), dim=-1) for at in range(0, len(distinct), 1024)]
    features = torch.cat(parts)
    means = [features[[place[text] for text in of_class]].mean(dim=0) for of_class in texts]
    return F.normalize(torch.stack(means), dim=-1)


def _sentences(path: Path) -> Mapping[str, tuple[str, ...]]:
    values = _object(path, "{class: [sentence, ...]}")
    for name, texts in values.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(one, str) and one.strip() for one in texts):
            raise TextsError(f"{path}: the sentences of {name!r} must be a list of at least one text")
    return {name: tuple(texts) for name, texts in _by_class(path, values).items()}


def _by_class(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if same(name) in found and found[same(name)] != value:
            raise TextsError(f"{path}: {name!r} is there twice (case and underscores do not count); remove one")
        found[same(name)] = value
    return found


def _object(path: Path, form: str) -> dict[str, Any]:
    try:
        values = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise TextsError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict) or not values:
        raise TextsError(f"{path} must hold {form}")
    return values


def _read(path: Path) -> str:
    try:
        stamp = path.stat()
        return _text(path, stamp.st_size, stamp.st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TextsError(f"{path} cannot be read ({reason}); name a file of templates, sentences or names") from error


@cache
def _text(path: Path, size: int, changed: int) -> str:
    return path.read_text(encoding="utf-8")
