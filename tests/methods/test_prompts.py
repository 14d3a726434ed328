"""Prompts: where the tokens go, and that the fast text path gives the plain path's numbers."""

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.parts import prompts as prompt_texts
from methods.parts.backbone import Backbone, BackboneError
from methods.parts.prompts import PromptTemplate, class_text, encode_prompts
from tests.support.golden import assert_golden, golden_set

NAMES = ["cat", "hot_air_balloon", "sea_turtle", "t-shirt", "zebra crossing sign"]
COOP, PROS = "{context} {name}.", "a photo of {name} from {context} domain."


def context_for(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outputs_and_gradients(
    backbone: Backbone, prompts: PromptTemplate, context: Tensor, **path: bool | int
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, gradient of the context and of the text projection, for a loss that weighs all features differently."""
    context = context.clone().requires_grad_(True)
    projection = backbone.text_projection.clone().requires_grad_(True)
    features = encode_prompts(backbone, prompts, context, projection=projection, **path)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    (F.normalize(features, dim=-1) * weights).sum().backward()
    assert context.grad is not None
    assert projection.grad is not None
    return features.detach(), context.grad, projection.grad


# --- templates -------------------------------------------------------------------------------------------------------


def test_a_prompt_is_the_tokenizers_encoding_with_slots_between(tiny_backbone: Backbone) -> None:
    for template in (COOP, PROS, "a {context} {name}", "{name} {context}"):
        prompts = PromptTemplate.build(tiny_backbone, NAMES, template, context=3)
        for row, name in enumerate(NAMES):
            text = template.replace("{context}", "x x x").replace("{name}", class_text(name))  # x is one token
            ids = tiny_backbone.tokenize([text])[0]
            x = tiny_backbone.token_ids("x")[0]
            places = [place for place, token in enumerate(ids.tolist()) if token == x]
            assert prompts.slots[row].tolist() == places
            assert torch.equal(prompts.ids[row], ids.masked_fill(ids == x, 0))
            assert int(prompts.eot[row]) == int(tiny_backbone.eot_positions(ids[None]))


def test_the_prefix_is_what_all_prompts_have_in_common(tiny_backbone: Backbone) -> None:
    coop = PromptTemplate.build(tiny_backbone, NAMES, COOP, context=4)
    assert (coop.prefix_length, coop.prefix_slots, coop.context, len(coop)) == (5, 4, 4, 5)
    pros = PromptTemplate.build(tiny_backbone, NAMES, PROS, context=4)
    assert pros.prefix_length == 1 + len(tiny_backbone.token_ids("a photo of"))
    assert pros.prefix_slots == 0
    assert pros.longest == int(pros.eot.max())
    one = PromptTemplate.build(tiny_backbone, NAMES[:1], PROS, context=4)
    assert (one.prefix_length, one.prefix_slots) == (int(one.eot[0]), 4)  # something is left to read
    some = coop.select([2, 0])
    assert torch.equal(some.ids, coop.ids[[2, 0]])
    assert some.longest == int(coop.eot[[2, 0]].max()) < coop.longest


def test_class_names_are_written_with_spaces() -> None:
    assert class_text("hot_air_balloon") == "hot air balloon"
    assert class_text(" The_Eiffel__Tower ") == "The Eiffel Tower"


def test_unusable_prompts_are_named(tiny_backbone: Backbone) -> None:
    with pytest.raises(
        BackboneError, match=r"class 'cat' has 7\d tokens, .* reads 64: use fewer context tokens \(now 70\)"
    ):
        PromptTemplate.build(tiny_backbone, NAMES, COOP, context=70)
    for template, context in (("{name}", 4), ("{context} {name}", 0), ("{context}", 4)):
        with pytest.raises(BackboneError, match=r"write \{name\} once"):
            PromptTemplate.build(tiny_backbone, NAMES, template, context=context)
    with pytest.raises(BackboneError, match="at least one class name"):
        PromptTemplate.build(tiny_backbone, [], COOP, context=4)
    for build in (PromptTemplate.build, PromptTemplate.opening):
        with pytest.raises(BackboneError, match=r"a list: write \['cat'\], not 'cat'"):
            build(tiny_backbone, "cat", COOP, 4)
    prompts = PromptTemplate.build(tiny_backbone, NAMES, COOP, context=4)
    with pytest.raises(BackboneError, match=r"context has shape \(3, 32\), the prompts take \[4, 32\]"):
        encode_prompts(tiny_backbone, prompts, torch.zeros(3, 32))
    with pytest.raises(BackboneError, match="cut=False is the plain path"):
        encode_prompts(tiny_backbone, prompts, torch.zeros(4, 32), cut=False)
    with pytest.raises(BackboneError, match="behind the end of text"):
        PromptTemplate.from_ids(tiny_backbone, prompts.ids, torch.full((5, 1), 60))


# --- same numbers on every path --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "shape", "count"),
    [
        pytest.param(COOP, (6, 32), 5, id="coop: context in the prefix"),
        pytest.param(COOP, (3, 6, 32), 5, id="ad_clip: context in the prefix, one per image"),
        pytest.param(PROS, (6, 32), 5, id="pros: context in the suffix"),
        pytest.param(PROS, (3, 6, 32), 5, id="context in the suffix, one per image"),
        pytest.param(PROS, (6, 32), 1, id="one class: everything but the end is prefix"),
    ],
)
def test_every_path_gives_the_same_features_and_gradients(
    tiny_backbone: Backbone, template: str, shape: tuple[int, ...], count: int
) -> None:
    prompts = PromptTemplate.build(tiny_backbone, NAMES[:count], template, context=6)
    context = context_for(shape)
    plain = outputs_and_gradients(tiny_backbone, prompts, context, shared_prefix=False, cut=False)
    assert plain[0].shape == (*shape[:-2], count, tiny_backbone.embed_dim)
    for path in ({"shared_prefix": False}, {}, {"class_chunk": 2}, {"shared_prefix": False, "class_chunk": 2}):
        for ours, expected in zip(outputs_and_gradients(tiny_backbone, prompts, context, **path), plain, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("template", "shape"), [(COOP, (3, 6, 32)), (COOP, (6, 32)), (PROS, (6, 32))])
def test_checkpointed_pieces_give_the_same_features_and_gradients(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch, template: str, shape: tuple[int, ...]
) -> None:
    prompts, context = PromptTemplate.build(tiny_backbone, NAMES, template, context=6), context_for(shape)
    whole = outputs_and_gradients(tiny_backbone, prompts, context)
    sizes: list[int] = []
    run = tiny_backbone.text.run_after_prefix
    monkeypatch.setattr(
        tiny_backbone.text,
        "run_after_prefix",
        lambda prefix, suffix, eot: (sizes.append(suffix.shape[1]), run(prefix, suffix, eot))[1],
    )
    images = shape[0] if len(shape) == 3 else 1
    monkeypatch.setattr(prompt_texts, "PIECE_BYTES", 2 * prompt_texts.suffix_bytes(tiny_backbone, prompts, images))
    outputs_and_gradients(tiny_backbone, prompts, context)
    assert sizes == [len(NAMES)]  # not above the bound: in one piece, once
    sizes.clear()
    monkeypatch.setattr(prompt_texts, "CHECKPOINT_ABOVE", 0)
    pieces = outputs_and_gradients(tiny_backbone, prompts, context)
    assert sorted(sizes) == [1, 1, 2, 2, 2, 2]  # five classes, two at a time, forward and again for backward
    for ours, expected in zip(pieces, whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    sizes.clear()
    with torch.no_grad():
        encode_prompts(tiny_backbone, prompts, context)
    assert sizes == [len(NAMES)]  # nothing is kept for backward


def peak_bytes(backbone: Backbone, count: int) -> int:
    """The most memory that tensors of a training forward and backward over ``count`` classes hold at once."""
    prompts = PromptTemplate.build(backbone, [f"cat {'a' * (n % 3 + 1)}" for n in range(count)], COOP, context=6)
    context = context_for((4, 6, 32)).requires_grad_(True)
    with torch.profiler.profile(profile_memory=True) as profile:
        encode_prompts(backbone, prompts, context).square().sum().backward()
    kineto: Any = profile.profiler
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(held)


def test_memory_of_checkpointed_pieces_hardly_grows_with_the_classes(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = copy.deepcopy(tiny_backbone.model.config)
    config.text_config.num_hidden_layers = 8
    deep = Backbone.from_config(config, seed=0, tokenizer=tiny_backbone.tokenizer)
    whole = [peak_bytes(deep, count) for count in (32, 128)]
    prompts = PromptTemplate.build(deep, ["cat a", "cat aa", "cat aaa"], COOP, context=6)
    per_class = prompt_texts.suffix_bytes(deep, prompts, 4)
    assert 0.5 < (whole[1] - whole[0]) / 96 / per_class < 1.2  # what is compared with the bound is what it takes
    monkeypatch.setattr(prompt_texts, "CHECKPOINT_ABOVE", 0)
    monkeypatch.setattr(prompt_texts, "PIECE_BYTES", 8 * per_class)
    pieces = [peak_bytes(deep, count) for count in (32, 128)]
    assert pieces[1] - pieces[0] < 0.15 * (whole[1] - whole[0])
    assert pieces[1] < 0.25 * whole[1]


def test_classes_of_like_length_run_together(tiny_backbone: Backbone) -> None:
    names = ["a cat", "sea turtle", "dog", "hot air balloon", "a sketch of a dog in a balloon", "horse"] * 7
    prompts = PromptTemplate.build(tiny_backbone, names, COOP, context=6)
    parts = prompts.by_length
    assert len(parts) > 2
    assert sorted(torch.cat([index for index, _ in parts]).tolist()) == list(range(len(names)))
    for index, part in parts:
        assert torch.equal(part.ids, prompts.ids[index])
    assert all(len(part) >= 8 for _, part in parts[:-1])
    assert all(int(a.eot.max()) < int(b.eot.min()) for (_, a), (_, b) in itertools.pairwise(parts))
    for shape in ((6, 32), (3, 6, 32)):
        plain = outputs_and_gradients(tiny_backbone, prompts, context_for(shape), shared_prefix=False, cut=False)
        for chunk in (None, 5):
            ours = outputs_and_gradients(tiny_backbone, prompts, context_for(shape), class_chunk=chunk)
            for got, expected in zip(ours, plain, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_every_class_and_every_image_has_its_own_features(tiny_backbone: Backbone) -> None:
    prompts = PromptTemplate.build(tiny_backbone, NAMES, COOP, context=6)
    context = context_for((3, 6, 32))
    together = encode_prompts(tiny_backbone, prompts, context)
    for image in range(3):
        torch.testing.assert_close(together[image], encode_prompts(tiny_backbone, prompts, context[image]))
    distances = torch.cdist(together.flatten(0, 1), together.flatten(0, 1))
    assert distances[~torch.eye(15, dtype=torch.bool)].min() > 1e-2


def test_without_context_prompts_are_plain_texts(tiny_backbone: Backbone) -> None:
    prompts = PromptTemplate.build(tiny_backbone, NAMES, "a photo of a {name}")
    expected = tiny_backbone.encode_texts([f"a photo of a {class_text(name)}" for name in NAMES])
    torch.testing.assert_close(encode_prompts(tiny_backbone, prompts), expected, rtol=1e-5, atol=1e-5)


def test_word_embeddings_as_context_give_the_words_features(tiny_backbone: Backbone) -> None:
    words = tiny_backbone.token_ids("sea turtle dog")
    prompts = PromptTemplate.build(tiny_backbone, NAMES, PROS, context=len(words))
    features = encode_prompts(tiny_backbone, prompts, tiny_backbone.embed_tokens(torch.tensor(words)))
    texts = [PROS.replace("{name}", class_text(name)).replace("{context}", "sea turtle dog") for name in NAMES]
    torch.testing.assert_close(features, tiny_backbone.encode_texts(texts), rtol=1e-5, atol=1e-5)


def test_bf16_prompts_stay_close(tiny_folder: object, tiny_backbone: Backbone) -> None:
    half = Backbone.load(str(tiny_folder), precision="bf16")
    prompts = PromptTemplate.build(half, NAMES, COOP, context=6)
    features = encode_prompts(half, prompts, context_for((2, 6, 32)))
    assert features.dtype == torch.float32
    assert (
        F.cosine_similarity(features, encode_prompts(tiny_backbone, prompts, context_for((2, 6, 32))), dim=-1).min()
        > 0.999
    )


# --- golden ----------------------------------------------------------------------------------------------------------


def slots(start: Tensor | int, count: int, rows: int) -> Tensor:
    return torch.as_tensor(start).view(-1, 1).expand(rows, 1) + torch.arange(count)


@pytest.mark.golden
@pytest.mark.parametrize(("file", "scope"), [("pros.npz", "pros"), ("ucdr_adapter.npz", "ucdra")])
@pytest.mark.parametrize("shared_prefix", [True, False])
def test_golden_text_side(file: str, scope: str, shared_prefix: bool) -> None:
    golden = golden_set()
    arrays, backbone = golden.arrays(file), golden.clip(vision_layers=2, text_layers=2)
    ids, start = torch.from_numpy(arrays["text_token_ids"]), torch.from_numpy(arrays["text_context_start"])
    context = golden.fill(f"{scope}.text_context", golden.shape(file, "s1_", f"{scope}.text_context"), "vec")
    prompts = PromptTemplate.from_ids(backbone, ids, slots(start, len(context), len(ids)))
    features = encode_prompts(backbone, prompts, context, shared_prefix=shared_prefix)
    assert_golden(F.normalize(features), arrays["s1_text_features"], what="text features")
    if "coop_text_token_ids" in arrays:
        ids = torch.from_numpy(arrays["coop_text_token_ids"])
        prompts = PromptTemplate.from_ids(backbone, ids, slots(1, len(context), len(ids)))
        assert prompts.prefix_length >= 1 + len(context)
        features = encode_prompts(backbone, prompts, context, shared_prefix=shared_prefix)
        expected = torch.from_numpy(arrays["coop_text_features"])
        assert_golden(F.normalize(features), F.normalize(expected), what="coop text features")


@pytest.mark.golden
@pytest.mark.parametrize("shared_prefix", [True, False])
def test_golden_prompts_per_image(shared_prefix: bool) -> None:
    golden = golden_set()
    arrays, backbone = golden.arrays("ad_clip.npz"), golden.clip(vision_layers=2, text_layers=2)
    ids = torch.from_numpy(arrays["token_ids"])
    tokens = {
        name: torch.from_numpy(arrays[name]) for name in arrays if name.endswith(("domain_tokens", "image_tokens"))
    }
    places = int((ids[0] == ids[0, 1]).sum())  # the word X is in the place of each learned token
    for side in ("source", "target"):
        domains = torch.cat([tokens["source_domain_tokens"], tokens["target_domain_tokens"]], dim=1)
        image = tokens[f"{side}_image_tokens"].expand(-1, places - domains.shape[1], -1)  # all the same, stored once
        context = torch.cat([domains, image], dim=1)
        prompts = PromptTemplate.from_ids(backbone, ids, slots(1, context.shape[1], len(ids)))
        features = encode_prompts(backbone, prompts, context, shared_prefix=shared_prefix)
        assert_golden(F.normalize(features, dim=-1), arrays[f"{side}_text_features"], what=f"{side} text features")
