"""Which values a method's settings may take: one check for every ``Config``, made before anything is trained.

A number is bounded by its name where methods share it (:data:`BOUNDS`), else by its default: a number whose default is
above 0 (a whole number: at least 0) cannot be negative. A ``Config`` declares other bounds so::

    bounds: ClassVar[Mapping[str, Bound]] = {"shift": Bound()}

A choice (``Literal``) must be one of its values, a text that is a prompt template must have a place for the class name,
and no number may be NaN or infinite. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

NAME, CONTEXT = "{name}", "{context}"


@dataclass(frozen=True)
class Bound:
    """An interval of numbers; ``above`` and ``below`` exclude the end, ``low`` and ``high`` include it."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def holds(self, value: float) -> bool:
        """Whether the value is inside (NaN never is)."""
        return self.low <= value <= self.high and self.above < value < self.below

    def __str__(self) -> str:
        ends = (("at least", self.low), ("above", self.above), ("at most", self.high), ("below", self.below))
        return " and ".join(f"{word} {end:g}" for word, end in ends if math.isfinite(end)) or "a finite number"


_COUNT, _SHARE, _SCALE = Bound(low=1), Bound(low=0, high=1), Bound(above=0)

#: What settings of these names may be, in every method whose default agrees.
BOUNDS: Mapping[str, Bound] = {
    **dict.fromkeys(("batch_size", "stage1_batch_size", "epochs", "stage1_epochs", "rank", "width", "side"), _COUNT),
    **dict.fromkeys(("prompt_tokens", "prompt_length", "simulator_layers", "domain_hidden", "style_hidden"), _COUNT),
    **dict.fromkeys(("anchors", "queue_size", "reference_size", "memory"), _COUNT),
    **dict.fromkeys(("stage1_share", "warmup_share", "unseen_share", "momentum"), _SHARE),
    **dict.fromkeys(("temperature", "attention_temperature", "prompt_ratio", "alpha"), _SCALE),
    "dropout": Bound(low=0, below=1),
    "crop": Bound(above=0, high=1),
    "jitter": Bound(low=0, high=0.5),
    **dict.fromkeys(("weight_decay", "learning_rate", "stage1_learning_rate", "decay", "margin"), Bound(low=0)),
}


def faults(config: Any) -> list[tuple[str, str]]:
    """What is wrong with the values of a ``Config`` (a dataclass): pairs of field name and reason, in field order."""
    kind = type(config)
    hints = _hints(kind)
    faulty = []
    for field in dataclasses.fields(kind):
        value = getattr(config, field.name)
        reason = _fault(config, field, value, hints.get(field.name))
        if reason:
            faulty.append((field.name, reason))
    return faulty


def _fault(config: Any, field: dataclasses.Field[Any], value: Any, hint: Any) -> str:
    if isinstance(value, bool) or value is None:
        return ""
    choices = _choices(hint)
    if choices and value not in choices:
        return f"must be one of {', '.join(map(str, choices))}, not {value!r}"
    if isinstance(value, str):
        return template_fault(value, _context_tokens(config)) if field.name.endswith("template") else ""
    if not isinstance(value, int | float):
        return ""
    bound = bound_of(config, field)
    if value == math.inf:
        return f"must be a finite number, not {value!r}"
    if not math.isfinite(value) or not bound.holds(value):
        return f"must be {bound}, not {value!r}"
    return ""


def bound_of(config: Any, field: dataclasses.Field[Any]) -> Bound:
    """The interval of a numeric field: what the ``Config`` declares, else by name, else by default."""
    own = getattr(type(config), "bounds", {})
    if field.name in own:
        bound: Bound = own[field.name]
        return bound
    default = field.default if isinstance(field.default, int | float) else math.nan
    named = BOUNDS.get(field.name)
    if named is not None and named.holds(default):
        return named
    if default > 0 or (isinstance(default, int) and default == 0) or (named is not None and default == 0):
        return Bound(low=0)
    return Bound()


def template_fault(template: str, context_tokens: int | None = None) -> str:
    """What is wrong with a prompt template, or "".

    The class name's place is ``{}`` or ``{name}``, once; ``{context}`` is that of learned context tokens, once, where
    there are any. No other braces.
    """
    rest = template.replace("{}", NAME)
    names, contexts = rest.count(NAME), rest.count(CONTEXT)
    stray = re.search(r"\{[^{}]*\}?|\}", rest.replace(NAME, "").replace(CONTEXT, ""))
    if stray:
        return f"has the stray {stray[0]!r} in {template!r}: only {NAME} (or {{}}) and {CONTEXT} are filled in"
    if names != 1:
        return f"{template!r} must have one place for the class name, {NAME} or {{}}, not {names}"
    if contexts and context_tokens == 0:
        return f"{template!r} has {CONTEXT} where context_tokens is 0: take more tokens, or a template without it"
    if contexts > (1 if context_tokens else 0):
        return f"{template!r} has {CONTEXT} {contexts} times: write it once, and only where there are context tokens"
    return ""


def fill(template: str, name: str) -> str:
    """The template with the class name in its place (``{}`` or ``{name}``)."""
    return template.replace("{}", NAME).replace(NAME, name)


def _context_tokens(config: Any) -> int | None:
    value = getattr(config, "context_tokens", None)
    return value if isinstance(value, int) else None


def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except Exception:  # a third party's annotation that cannot be resolved is no reason to refuse its config
        return {}


def _choices(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [_choices(part) for part in typing.get_args(hint) if part is not type(None)]
        return tuple(item for part in parts for item in part) if parts and all(parts) else ()
    return ()
