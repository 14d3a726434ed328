"""picto-clip's architecture and tokenizer: an ordinary ``transformers.CLIPModel`` of small size."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: White paper becomes zero, so that a patch represents its ink and not how white it is.
PIXEL_MEAN, PIXEL_STD = 1.0, 0.35

START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of picto-clip."""

    image_size: int = 64
    patch_size: int = 16
    vision_width: int = 160
    vision_layers: int = 4
    text_width: int = 128
    text_layers: int = 2
    embed_dim: int = 128
    context_length: int = 64
    vocabulary: int = 4096
    head_width: int = 32


def build_model(config: ModelConfig) -> Any:
    """A randomly initialised ``transformers.CLIPModel`` (call ``torch.manual_seed`` first).

    Linear maps start at unit gain: with the class's own, smaller values the two towers are constant for long.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel

    special = {"bos_token_id": config.vocabulary - 2, "eos_token_id": config.vocabulary - 1}
    model = CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": config.vocabulary,
                "hidden_size": config.text_width,
                "intermediate_size": 4 * config.text_width,
                "num_hidden_layers": config.text_layers,
                "num_attention_heads": config.text_width // config.head_width,
                "max_position_embeddings": config.context_length,
                "projection_dim": config.embed_dim,
                "pad_token_id": config.vocabulary - 1,
                **special,
            },
            vision_config={
                "hidden_size": config.vision_width,
                "intermediate_size": 4 * config.vision_width,
                "num_hidden_layers": config.vision_layers,
                "num_attention_heads": config.vision_width // config.head_width,
                "image_size": config.image_size,
                "patch_size": config.patch_size,
                "projection_dim": config.embed_dim,
            },
            projection_dim=config.embed_dim,
        )
    )
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    return model


def _empty_tokenizer(model: Any) -> Any:
    """Lower case, white space and underscores alike; letters, single digits and runs of signs are words, in bytes."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"[\s_]+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_tokenizer(texts: Iterable[str], config: ModelConfig, folder: Path) -> Any:
    """Train a CLIP-style byte-pair encoding on ``texts``, save it to ``folder`` and return it loaded from there.

    Lower case, ``</w>`` ends a word, the special tokens have the largest ids (end-of-text the largest), as in
    OpenAI's vocabulary, so code that reads the text at the largest id works.
    """
    from tokenizers import models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = [*alphabet, *[f"{letter}</w>" for letter in alphabet]]
    learner = _empty_tokenizer(models.BPE(end_of_word_suffix="</w>"))
    # Equally frequent pairs are merged in the order of their ids, and the library numbers characters that end a word in
    # the order of a hash table, another in every process: naming them first fixes their ids, hence the vocabulary.
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary, end_of_word_suffix="</w>", special_tokens=base, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]["merges"][: config.vocabulary - 2 - len(base)]
    merges = [(left, right) for left, right in learned]
    vocabulary = {token: n for n, token in enumerate([*base, *[left + right for left, right in merges]])}
    tokenizer = _empty_tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    missing = config.vocabulary - 2 - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<|unused{i}|>" for i in range(missing)])
    tokenizer.add_special_tokens([START, END])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(START, tokenizer.token_to_id(START)), (END, tokenizer.token_to_id(END))],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=END,
        model_max_length=config.context_length,
        clean_up_tokenization_spaces=False,
    )
    if fast.convert_tokens_to_ids(END) != config.vocabulary - 1:
        raise ValueError(
            f"tokenizer: end-of-text has id {fast.convert_tokens_to_ids(END)}, not {config.vocabulary - 1}"
        )
    fast.save_pretrained(folder)
    return fast
