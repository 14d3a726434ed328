"""What a backbone computes depends on more than its weights: a hash of its config and one of its tokenizer.

Both are taken from the loaded objects, not from files: only what changes an output counts. Another folder, another
version of ``transformers``, ``architectures`` or the spelling of ``torch_dtype`` therefore change nothing, and a
backbone made in memory has an identity too. Neither hash looks at the weights (``Backbone.weights_hash``) or at the
image processor (``Backbone.preprocessing``).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import CLIPConfig

#: What CLIP's towers read of their configs.
TOWER_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
)
VISION_FIELDS = (*TOWER_FIELDS, "image_size", "patch_size", "num_channels")
TEXT_FIELDS = (*TOWER_FIELDS, "vocab_size", "max_position_embeddings", "eos_token_id")

#: The parts of a ``tokenizers`` description that decide which ids a text gets. Truncation and padding are left out:
#: every call sets them.
TOKENIZER_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "model", "added_tokens")

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_SETTINGS = ("model_max_length", "padding_side", "truncation_side")

#: Descriptions are long (a vocabulary), so each tokenizer's is hashed once; its length shows that nothing was added.
_described: weakref.WeakKeyDictionary[Any, tuple[int, str]] = weakref.WeakKeyDictionary()


def digest(facts: Any) -> str:
    """sha256 of JSON-able facts, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def config_facts(config: CLIPConfig) -> dict[str, Any]:
    """What determines the output in a CLIP's config, defaults filled in: ``projection_dim``, ``vision``, ``text``."""
    towers: dict[str, dict[str, Any]] = {}
    for name, fields in (("vision", VISION_FIELDS), ("text", TEXT_FIELDS)):
        towers[name] = tower_facts(getattr(config, f"{name}_config"), fields)
    return {"projection_dim": config.projection_dim, **towers}


def tower_facts(config: Any, fields: Sequence[str]) -> dict[str, Any]:
    """What a tower reads of its config."""
    return {field: _plain(getattr(config, field, None)) for field in fields}


def config_hash(config: CLIPConfig) -> str:
    """sha256 of :func:`config_facts`."""
    return digest(config_facts(config))


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 of all that decides which ids a text gets: vocabulary, merges, normaliser, word splitting, special tokens,
    longest text; "" without a tokenizer."""
    if tokenizer is None:
        return ""
    known = _described.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        known = (len(tokenizer), digest(_description(tokenizer)))
        _described[tokenizer] = known
    special = {name: [str(getattr(tokenizer, name)), getattr(tokenizer, f"{name}_id")] for name in _SPECIAL}
    settings = {name: getattr(tokenizer, name, None) for name in _SETTINGS}
    return digest([known[1], special, sorted(tokenizer.all_special_ids), settings])


def _description(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        whole: Mapping[str, Any] = json.loads(backend.to_str())
        return {part: whole.get(part) for part in TOKENIZER_PARTS}
    with tempfile.TemporaryDirectory() as folder:  # a tokenizer written in Python: its own vocabulary files
        tokenizer.save_vocabulary(folder)
        files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(Path(folder).iterdir())}
    return {"class": type(tokenizer).__qualname__, "vocabulary": tokenizer.get_vocab(), "files": files}


def _plain(value: Any) -> Any:
    """A list of equal values (``[16, 16]``, ``[49407]``) means the same as the value."""
    if isinstance(value, list | tuple):
        return value[0] if value and all(item == value[0] for item in value) else list(value)
    return value
