"""A tiny CLIP checkpoint with random weights and a real byte-pair tokenizer, written as a Hugging Face folder."""

import itertools
import json
from collections import Counter
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

CORPUS = [
    "a photo of a cat domain.",
    "a photo of an aircraft carrier from clipart domain.",
    "a drawing of a hot air balloon, a sea turtle, a t-shirt",
    "a sketch of a dog and a drawing of a horse",
    "an icon of an alarm clock in line style",
]


#: Merges that the tiny tokenizer learns.
MERGES = 100


def learned_merges() -> list[tuple[str, str]]:
    """The byte pairs that CORPUS teaches: again and again the most frequent one, the first in the alphabet if equal.

    (The trainer of ``tokenizers`` breaks ties by hash order, which differs between processes.)
    """
    stock = CLIPTokenizer().backend_tokenizer  # normaliser and word splitting as in every CLIP
    words: Counter[tuple[str, ...]] = Counter()
    for text in CORPUS:
        for word, _ in stock.pre_tokenizer.pre_tokenize_str(stock.normalizer.normalize_str(text)):
            words[*word[:-1], f"{word[-1]}</w>"] += 1
    merges: list[tuple[str, str]] = []
    while len(merges) < MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = Counter({_merged(word, best): count for word, count in words.items()})
    return merges


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    parts: list[str] = []
    for part in word:
        if parts and (parts[-1], part) == pair:
            parts[-1] += part
        else:
            parts.append(part)
    return tuple(parts)


def tiny_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with the 256 bytes, the 256 word-final bytes and the few merges that CORPUS teaches.

    The same in every process.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learned_merges()
    words = alphabet + [f"{byte}</w>" for byte in alphabet] + ["".join(merge) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(dict.fromkeys(words))}, merges=merges)


def tiny_config(**changes: dict[str, int]) -> CLIPConfig:
    """32 px, patch 8, two blocks of width 32 a tower, embedding 24, context 64; ``vision=`` and ``text=`` change it."""
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    text = {
        **sizes,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 64,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPConfig(
        vision_config={**vision, **changes.get("vision", {})},
        text_config={**text, **changes.get("text", {})},
        projection_dim=24,
    )


#: Random numbers before the first weight. Any number would do; whether a test's few steps suffice to learn rests on it.
SKIPPED = 187_200


def tiny_model(seed: int = 0, config: CLIPConfig | None = None) -> CLIPModel:
    """Random weights, drawn wide enough that features of different inputs differ clearly."""
    with torch.random.fork_rng(devices=[]):
        model = CLIPModel(config or tiny_config())
        torch.manual_seed(seed)  # after the constructor: how many numbers it draws differs between versions
        torch.empty(SKIPPED).uniform_()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name == "logit_scale":
                    continue
                noise = torch.randn_like(parameter)
                if parameter.ndim > 1 and "embedding.weight" not in name:
                    parameter.copy_(noise / parameter[0].numel() ** 0.5)
                elif "norm" in name and name.endswith("weight"):
                    parameter.copy_(1 + 0.1 * noise)
                else:
                    parameter.copy_(0.3 * noise)
    return model.eval()


def tiny_clip_folder(path: Path, *, seed: int = 0, config: CLIPConfig | None = None) -> Path:
    """Write a checkpoint (config, safetensors, tokenizer, image processor) into ``path`` and return it: the tiny one,
    or random weights of another ``config``."""
    path.mkdir(parents=True, exist_ok=True)
    model = tiny_model(seed, config)
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    size = model.config.vision_config.image_size
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": [0.6, 0.5, 0.4],
        "image_std": [0.25, 0.3, 0.2],
        "resample": 2,
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
    }
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path
