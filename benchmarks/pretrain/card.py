"""The cards of released versions, one a recipe, and the tables in them."""

from __future__ import annotations

from typing import Any

#: Sizes of the model: the same in every card.
_SIZES = """| | |
|---|---|
| vision tower | plain ViT, {model[image_size]} px, {model[patch_size]} px patches, {model[vision_layers]} layers x \
{model[vision_width]} |
| text tower | {model[text_layers]} layers x {model[text_width]}, context {model[context_length]}, byte-pair encoding \
of {model[vocabulary]} tokens trained on the corpus |
| embedding | {model[embed_dim]} |
| parameters | {parameters:,} ({megabytes:.1f} MB in float16) |
"""

#: Card of the recipe ``invariant``.
INVARIANT = (
    """---
license: mit
library_name: transformers
tags: [clip, icons, clip-art, zero-shot-image-classification]
---
# picto-clip {version}

A small CLIP for drawings of everyday things: the embedded backbone of UCDR-Bench. It exists so that the whole suite
runs offline on two CPU cores; it is no substitute for a CLIP trained on photographs.

"""
    + _SIZES
    + """| seen | {images:,} images in {step:,} steps, {world} process(es) of {training[concepts]} concepts x \
{training[views]} images |

## Corpus and licence
{corpus[pictures]:,} drawings ({corpus[mono]:,} single-colour, {corpus[colour]:,} in colour) with {corpus[phrases]:,} \
different names, from the collections of the npm package `@iconify/json` {corpus[iconify_version]} and Debian's \
`openclipart-svg` that allow redistribution without share-alike or non-commercial terms (MIT, Apache-2.0, CC-BY, CC0, \
ISC, OFL, Unlicense, BSD; public domain). Left out: every collection that feeds PictoDomains, its forks and other \
versions, logos, flags, and every drawing perceptually equal to one of those collections. The collections are \
listed in \
`corpus.json` beside this card. The weights are released under the MIT licence.

## Recipe
`python -m benchmarks.pretrain corpus`, then `train`: multi-positive contrastive loss (drawings of one WordNet synset, \
or of one name, are positives of one caption), AdamW {training[learning_rate]:g}, betas {training[betas]}, weight \
decay {training[weight_decay]:g}, warm-up {training[warmup_steps]} steps, held, then linear decay over the last \
{decay:.0%}; captions in varied templates, every {training[long_every]}th batch long (up to the whole context, so \
that every text position is trained); single-colour drawings are painted anew each time (ink, paper and the \
regions their \
lines enclose get random colours, sometimes shaded), colour drawings recoloured, all of them turned, scaled, sheared, \
shifted and mirrored. Seed {training[seed]}. Pixels are normalised so that white is zero.

## Measured on PictoDomains
Zero-shot top-1 with `a photo of a {{}}` over the {classes} train and validation classes: **{top1:.1%}** \
(aim: {aim:.0%}; chance {chance:.1%}). Cross-domain mAP@all: query domain against the gallery domain, cosine.

{table_seen}

Test classes ({test_classes}), measured once for this version:

{table_test}

## What it can and cannot do
It recognises plain drawings of common things, best as line art and glyphs, which fill its corpus; colour art is \
harder. It has seen no photograph, knows no people, places, brands or actions, and its English is that of icon names. \
Names of classes occur in its corpus: "unseen" in this suite means unseen in adaptation, as with every CLIP.
"""
)

#: Card of the recipe ``clip``.
CLIP = (
    """---
license: mit
library_name: transformers
tags: [clip, icons, clip-art, zero-shot-image-classification]
---
# picto-clip {version}

A small CLIP for drawings of everyday things, pretrained as CLIP is: image-text contrast on pairs and nothing else. It
is no substitute for a CLIP trained on photographs.

"""
    + _SIZES
    + """| seen | {images:,} pairs in {step:,} steps, {world} process(es) of {training[batch]} pairs |

## Corpus and licence
{corpus[pictures]:,} drawings ({corpus[mono]:,} single-colour, {corpus[colour]:,} in colour) with {corpus[phrases]:,} \
different names, from the collections of the npm package `@iconify/json` {corpus[iconify_version]} that allow \
redistribution without share-alike or non-commercial terms (MIT, Apache-2.0, CC-BY, CC0, ISC, OFL, Unlicense, BSD; \
public domain). Left out: every collection that feeds PictoDomains, Openclipart wholly, their forks and other \
versions, logos, flags, and every drawing perceptually equal to one of those collections or to an image of the \
pack.{unseen} \
The collections are listed in `corpus.json` beside this card (Openclipart in that list was not used). The weights are \
released under the MIT licence.

## Recipe, beside CLIP's
`python -m benchmarks.pretrain train CORPUS --recipe clip`; seed {training[seed]}.

| | CLIP (ViT-B/32; Radford et al. 2021) | picto-clip {version} |
|---|---|---|
| loss | symmetric InfoNCE over image-text pairs | the same; no term among images |
| positives | the pair itself | the pair itself and exact repeats of its caption |
| labels | none | none; no WordNet, no synonyms, names as they are |
| captions | alternative texts of the web | the drawing's own name, with style, colour, category or collection words \
in templates such texts use; every {training[long_every]}th batch long, so that all text positions are trained; the \
words of common prompts ("a photo of a", "from ... domain") are among the templates, since the text tower reads \
nothing else |
| sampling | at most 20,000 pairs for each of 500,000 queries: 25 times a query's mean | at most {training[cap]:g} \
pairs a name: 25 times a name's mean |
| colour | as found | {colour} |
| augmentation | random square crop of the resized image | random resized crop ({training[crop_area]:.0%} to 100 % of \
the area, sides within 4:3) and flip (not where the name says left or right); no colour or style change |
| temperature | learned, from 0.07, logits at most 100 times | the same |
| optimiser | Adam with decoupled weight decay 0.2, beta 0.9 and 0.98 | AdamW, weight decay {training[weight_decay]:g} \
(not on biases and gains), betas {training[betas]} |
| learning rate | 5e-4, warm-up 2,000 steps, cosine | {training[learning_rate]:g}, warm-up {training[warmup_steps]} \
steps, held, linear to zero over the last {decay:.0%} |
| batch | 32,768 | {training[batch]} a process |
| seen | 12.8 billion pairs, 32 epochs | {images:,} pairs, {epochs:.0f} epochs |
| precision | half, dynamic loss scale | {training[precision]} products, float32 weights |
| initial weights | 0.02 scaled with depth | unit gain (a narrow tower is constant for long otherwise) |
| pixels | mean and variance of the data | normalised so that white is zero |

Decided by zero-shot accuracy on train and validation classes alone (pilots of 205,000 pairs): no share of their own \
for colour drawings (6.9 % as the cap leaves them, 5.6 % with 15 % of every batch).

## Measured on PictoDomains
Zero-shot top-1 with `a photo of a {{}}` over the {classes} train and validation classes: **{top1:.1%}** (chance \
{chance:.1%}). Cross-domain mAP@all: query domain against the gallery domain, cosine.

{table_seen}

Test classes ({test_classes}), measured once for this version:

{table_test}

{headroom}

## What it can and cannot do
It recognises plain drawings of common things, best as line art and glyphs, which fill its corpus; colour art is \
harder. Like CLIP's, its features carry the style of an image, so that adaptation across styles has something to gain; \
picto-clip v2 was trained for cross-style retrieval and leaves nearly nothing. It has seen no photograph, knows no \
people, places, brands or actions, and its English is that of icon names. {names}
"""
)

SEEN = 'Names of classes occur in its corpus: "unseen" in this suite means unseen in adaptation, as with every CLIP.'
UNSEEN = "No drawing or caption of its corpus names a test class: unseen classes are unseen in pretraining as well."
LEFT_OUT = " Every drawing whose name holds a test class of PictoDomains, by name or by synset, was left out as well."

_HEADS = {"linear_probe": "linear probe", "metric_head": "metric-learning head", "full_finetune": "full fine-tuning"}


def style_table(results: dict[str, dict[str, Any]]) -> str:
    """Headroom and style of several backbones side by side, ``{name: evaluation with "headroom"}``; "" for none."""
    measured = {name: result["headroom"] for name, result in results.items() if "headroom" in result}
    if not measured:
        return ""
    first = next(iter(measured.values()))

    def row(title: str, values: list[str]) -> str:
        return f"| {title} | " + " | ".join(values) + " |"

    def gain(result: dict[str, Any], head: str) -> str:
        edge = " (end of the range)" if result[head]["edge"] else ""
        edge += " (still rising)" if result[head].get("rising") else ""
        return f"{result[head]['map@all']:.3f} ({100 * result['headroom'][head]:+.1f}){edge}"

    results_shown = list(measured.values())
    lines = [
        "## Headroom, and how much style the features carry",
        "Headroom: validation mAP@all (validation classes, seen domains to the gallery domain, "
        f"{first['held_out']} held out) after adaptation on train classes at the best learning rate, minus zero-shot, "
        "in points (`python -m benchmarks.pretrain evaluate --headroom`).",
        "",
        row("", list(measured)),
        "|---|" + "---:|" * len(measured),
        row("zero-shot top-1", [f"{results[name]['top1']:.1%}" for name in measured]),
        row("zero-shot mAP@all", [f"{result['zero_shot']['map@all']:.3f}" for result in results_shown]),
        *(row(title, [gain(result, head) for result in results_shown]) for head, title in _HEADS.items()),
        row(
            f"linear probe for the domain (commonest {first['style']['domain_chance']:.1%})",
            [f"{result['style']['domain_probe']:.1%}" for result in results_shown],
        ),
        row(
            f"own style among ten nearest (chance {first['style']['neighbours_chance']:.1%})",
            [f"{result['style']['neighbours']:.1%}" for result in results_shown],
        ),
        *(
            row(
                f"within-domain mAP, {domain}", [f"{result['style']['within'][domain]:.3f}" for result in results_shown]
            )
            for domain in first["style"]["within"]
        ),
    ]
    return "\n".join(lines)
