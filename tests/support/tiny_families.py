"""Tiny random models of the families beside CLIP, written as open_clip and ``transformers`` publish them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tests.support.tiny_clip import tiny_tokenizer

#: Of every text tower: as long as :func:`tests.support.tiny_clip.tiny_config`'s.
CONTEXT = 64

PREPROCESS = {"mean": [0.6, 0.5, 0.4], "std": [0.25, 0.3, 0.2], "interpolation": "bilinear", "resize_mode": "shortest"}


def text_cfg(**changes: Any) -> dict[str, Any]:
    """A text tower of two blocks for the tiny tokenizer."""
    return {
        "context_length": CONTEXT,
        "vocab_size": len(tiny_tokenizer()),
        "width": 32,
        "heads": 4,
        "layers": 2,
        **changes,
    }


#: open_clip's configs (``model_cfg``) by family.
OPEN_CLIP: dict[str, Callable[[], dict[str, Any]]] = {
    "vit": lambda: {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": text_cfg(),
    },
    "vit_quick": lambda: {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8, "mlp_ratio": 2.0},
        "text_cfg": text_cfg(heads=2),
    },
    "resnet": lambda: {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": text_cfg(),
    },
    "siglip": lambda: {
        "embed_dim": 64,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {"image_size": 64, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "none"},
        "text_cfg": text_cfg(
            hf_tokenizer_name="tiny", no_causal_mask=True, proj_bias=True, pool_type="last", norm_kwargs={"eps": 1e-6}
        ),
    },
    "coca": lambda: {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
            "attentional_pool": True,
            "attn_pooler_queries": 8,
            "attn_pooler_heads": 4,
            "output_tokens": True,
        },
        "text_cfg": text_cfg(embed_cls=True, output_tokens=True, hf_tokenizer_name="tiny"),
        "multimodal_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(tiny_tokenizer()),
            "width": 32,
            "heads": 4,
            "layers": 1,
            "attn_pooler_heads": 4,
        },
        "custom_text": True,
    },
    "eva": lambda: {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "eva02_tiny_patch14_224",
            "timm_pool": "token",
            "timm_proj": "linear",
        },
        "text_cfg": text_cfg(hf_tokenizer_name="tiny"),
    },
}


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights wide enough that features of different inputs differ clearly; running statistics that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():  # without buffers that no checkpoint holds
            noise = torch.randn(value.shape, generator=generator)
            if name in ("logit_scale", "logit_bias") or not value.is_floating_point():
                continue
            if name.endswith("running_var"):
                value.copy_(1 + 0.5 * noise.abs())
            elif value.ndim > 1 and "embedding" not in name:
                value.copy_(1.4 * noise / value[0].numel() ** 0.5)
            elif value.ndim == 1 and name.endswith("weight"):
                value.copy_(1 + 0.1 * noise)
            else:
                value.copy_(0.3 * noise)


def open_clip_folder(
    folder: Path, family: str, *, pickled: bool = False, vision_cfg: dict[str, Any] | None = None
) -> Any:
    """Write a model of a family as open_clip does, and return it; ``vision_cfg`` changes its config."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"model_cfg": OPEN_CLIP[family](), "preprocess_cfg": PREPROCESS}
    config["model_cfg"]["vision_cfg"] |= vision_cfg or {}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    tiny_tokenizer().save_pretrained(folder)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False).eval()
    randomise(model)
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    if pickled:
        torch.save(state, folder / "open_clip_pytorch_model.bin")
    else:
        save_file(state, folder / "open_clip_model.safetensors")
    return model


def siglip_folder(folder: Path) -> Any:
    """Write a SigLIP as ``transformers`` does, and return it."""
    from transformers import SiglipConfig, SiglipModel

    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, "projection_size": 32}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = SiglipConfig(
        text_config={**text, **ends, "pad_token_id": tokenizer.pad_token_id},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
    )
    model = SiglipModel(config).eval()
    randomise(model)
    with torch.no_grad():
        model.logit_scale.fill_(4.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model
