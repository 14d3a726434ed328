"""SRE-CLIP against the numbers of its released code (tests/golden/README.md, sections 8 and 10).

Everything runs through the method's own modules with its ``official`` settings. The fixtures replace CLIP's features by
given ones, name the graph's edges and have no dropout. "submatrix" in their names is the intended structure loss,
"literal" the released one.
"""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.official.sre_clip import SurplusMemory
from methods.parts.word_graph import receptive_field, row_normalised
from methods.plain.sre_clip import pair_loss
from methods.sre_clip import LAYERS, PAPER_STEPS, SreClipConfig, SreClipModel, learning_rate
from methods.training.loop import seeded
from tests.support.golden import (
    FEATURES,
    SGD_STEP,
    Compared,
    assert_all_compared,
    assert_golden,
    assert_gradients,
    assert_step,
    golden_set,
)

pytestmark = pytest.mark.golden

NOISE = "rounding noise of the released distance computation; golden README: do not compare"
METRIC = "accuracies: no part of a method; compared in tests/evaluation/test_classification.py"
NOT_COMPARED = {
    "c50_pair_literal_is_rounding_noise": NOISE,
    **dict.fromkeys(
        (
            *("gzsl_seen_scores", "gzsl_unseen_scores", "gzsl_seen_labels", "gzsl_unseen_labels", "gzsl_h"),
            *("zsl_acc_sample", "zsl_acc_class", "gzsl_unseen_sample", "gzsl_unseen_class", "gzsl_seen_sample"),
            *("gzsl_seen_class", "gzsl_h_from_class_means_unused"),
        ),
        METRIC,
    ),
}
MODES: dict[str, dict[str, Any]] = {
    "without_structure": {"structure": "none"},
    "submatrix": {"pair_reading": "submatrix"},
}
EXACT_DISTANCES = 25  # with more classes, the released code's distances of classes to themselves are not zero
SHARP = {"": {}, "sharp_": {"temperature": 0.0125}}


@pytest.fixture(scope="module")
def arrays() -> Compared:
    return Compared("sre_clip.npz")


# --- the method's model, filled by rule ------------------------------------------------------------------------------


def ours(canonical: str) -> str:
    """The name of a parameter in SreClipModel."""
    return canonical.removeprefix("sre.").replace("gcn.", "prototype_branch.")


def filled(arrays: Compared, edges: str = "edges", *, all_nodes: bool = False, **changes: Any) -> SreClipModel:
    """The model with its official settings, every parameter filled by rule, on the fixture's graph.

    ``edges`` names the graph; ``all_nodes`` computes every node as if it were a class.
    """
    golden = golden_set()
    width, inputs = shape_of("sre.adapter.q.weight")
    config = replace(SreClipConfig.official(), **{"dropout": 0.0, "width": width, **changes})
    listed = torch.from_numpy(arrays[edges])
    if edges == "edges":
        nodes = len(arrays["gcn_output"])
        classes = len(arrays["seen_class_ids"]) + len(arrays["unseen_class_ids"])
    else:  # later nodes without an edge would change nothing
        classes = len(arrays["c50_gcn_row_norms"])
        nodes = max(int(listed.max()) + 1, classes)
    vectors = golden.fill("sre.word_vectors", (nodes, shape_of("sre.gcn.layer1.weight")[1]), "z")
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    field = receptive_field(listed, nodes, range(nodes if all_nodes else classes), LAYERS)
    seen = torch.zeros(classes, dtype=torch.bool)
    seen[torch.from_numpy(arrays["seen_class_ids"])] = True
    model = SreClipModel(config, inputs, vectors[field.nodes], field, seen, None, seeded(0))
    for canonical in arrays["source_submatrix_param_names"]:
        parameter = model.get_parameter(ours(str(canonical)))
        kind = "bias" if str(canonical).endswith("bias") else "weight"
        with torch.no_grad():
            parameter.copy_(golden.fill(str(canonical), tuple(parameter.shape), kind))
    assert len(list(model.parameters())) == len(arrays["source_submatrix_param_names"])
    return model


def shape_of(parameter: str) -> tuple[int, ...]:
    """The shape of a parameter of the fixtures."""
    return golden_set().shape("sre_clip.npz", "step_submatrix_warmup_", parameter)


def source(arrays: Compared) -> tuple[Tensor, Tensor]:
    """The fixture's labelled features [B, E] and their labels [B]."""
    labels = torch.from_numpy(arrays["source_labels"]).long()
    width = shape_of("sre.adapter.q.weight")[1]
    return golden_set().fill("features.sre.source", (len(labels), width), "z"), labels


def target(arrays: Compared) -> list[Tensor]:
    """The fixture's unlabelled batches, [B, E] each."""
    shape = (len(arrays["source_labels"]), shape_of("sre.adapter.q.weight")[1])
    return [golden_set().fill(f"features.sre.target.{k}", shape, "z") for k in range(len(arrays["target_losses"]))]


def memory_of(arrays: Compared, model: SreClipModel) -> SurplusMemory:
    assert model.config.memory_surplus
    return SurplusMemory(int(arrays["max_warehouse"]))


def gradients(model: SreClipModel, names: np.ndarray) -> dict[str, Tensor | None]:
    return {str(name): model.get_parameter(ours(str(name))).grad for name in names}


# --- graph network and adapter ---------------------------------------------------------------------------------------


def test_propagation_weights(arrays: Compared) -> None:
    dense = torch.zeros(arrays["adjacency_normalised"].shape)
    messages, weights = row_normalised(torch.from_numpy(arrays["edges"]), len(dense))
    dense[messages[1], messages[0]] = weights
    assert_golden(dense, arrays["adjacency_normalised"], 1e-6, what="propagation weights")


@torch.no_grad()
def test_graph_network(arrays: Compared) -> None:
    """Over all nodes, and over the classes with only the nodes that they depend on."""
    output = arrays["gcn_output"]
    for all_nodes in (True, False):
        model = filled(arrays, all_nodes=all_nodes)
        branch, field = model.prototype_branch, model.field
        first = branch.graph_layer(1, model.vectors, field)
        second = branch.graph_layer(2, torch.nn.functional.leaky_relu(first, 0.2), field)
        assert_golden(second, output[: field.sizes[0]], what="graph network")
        if all_nodes:
            hidden = torch.nn.functional.leaky_relu(first, 0.2)
            expected = arrays["gcn_hidden_first8"]
            assert_golden(hidden[:, : expected.shape[1]], expected, what="hidden layer")
        normalised = torch.nn.functional.normalize(torch.from_numpy(output[: field.sizes[0]]), dim=-1)
        assert_golden(model.prototypes(), normalised, what="prototypes")


@torch.no_grad()
def test_graph_network_of_fifty_classes(arrays: Compared) -> None:
    model = filled(arrays, "c50_edges")
    branch, field = model.prototype_branch, model.field
    hidden = torch.nn.functional.leaky_relu(branch.graph_layer(1, model.vectors, field), 0.2)
    norms = branch.graph_layer(2, hidden, field).norm(dim=-1)
    assert_golden(norms, arrays["c50_gcn_row_norms"], what="norms")


@torch.no_grad()
def test_adapter_and_logits(arrays: Compared) -> None:
    model = filled(arrays)
    features, _ = source(arrays)
    assert_golden(model.adapter(features, features), arrays["adapter_output_source"], what="adapter")
    prototypes = model.prototypes()
    logits = model.logits(model.embed(features), prototypes)
    assert_golden(logits, arrays["source_class_logits"], what="logits")
    assert_golden(logits.softmax(dim=-1), arrays["validation_probs_source"], what="probabilities")
    alone = model.logits(model.embed(features, features.unsqueeze(1)), prototypes)  # eval_attention=self
    one_by_one = torch.cat([model.logits(model.embed(row), prototypes) for row in features.split(1)])
    for logits in (alone, one_by_one):
        assert_golden(logits.softmax(dim=-1), arrays["validation_probs_source_batchsize1"], what="one at a time")
    sharp = filled(arrays, **SHARP["sharp_"])
    probabilities = sharp.logits(sharp.embed(features), prototypes).softmax(dim=-1)
    assert_golden(probabilities, arrays["sharp_validation_probs_source"], what="sharp probabilities")


# --- structure loss --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_structure_loss(arrays: Compared) -> None:
    def value(**changes: Any) -> Tensor:
        model = filled(arrays, **changes)
        return model.structure_loss(model.prototypes())

    model = filled(arrays)
    prototypes = model.prototypes()
    before, after = model.before, torch.cdist(prototypes, prototypes)
    for name, own in (("reference", before), ("current", after)):
        released = torch.from_numpy(arrays[f"structure_{name}_distances"])
        if len(own) > EXACT_DISTANCES:  # the classes' distances to themselves are rounding noise
            own, released = (matrix - torch.diag(matrix.diagonal()) for matrix in (own, released))
        assert_golden(own, released, what=f"{name} distances")
    assert_golden(value(pair_reading="submatrix"), arrays["pair_submatrix"], what="submatrix")
    backwards = torch.arange(len(before) - 1, -1, -1)
    reordered = pair_loss(before[backwards][:, backwards], after[backwards][:, backwards], half=True)
    assert_golden(reordered, arrays["pair_submatrix_reversed_order"], what="reversed order")
    assert np.isnan(arrays["pair_literal"]) == value(empty_pairs="nan").isnan().item()
    assert value().item() == 0 or not np.isnan(arrays["pair_literal"])
    assert_golden(value(structure="l2"), arrays["structure_l2_unused"], what="l2")
    assert_golden(value(structure="entropy"), arrays["structure_entropy_unused"], what="entropy")


@torch.no_grad()
def test_structure_loss_of_made_up_distances(arrays: Compared) -> None:
    model = filled(arrays)
    shape = model.before.shape
    before, after = (golden_set().fill(f"sre.pair_test.{name}", shape, "z").abs() for name in ("reference", "current"))
    assert_golden(pair_loss(before, after, half=True), arrays["pair_test_submatrix"], what="submatrix")
    diagonals = [matrix.diagonal().unsqueeze(0) for matrix in (before, after)]
    assert_golden(pair_loss(*diagonals, half=True), arrays["pair_test_literal"], what="literal")


def test_released_structure_loss_trains_nothing(arrays: Compared) -> None:
    """The released reading on 50 classes: noise in the value, nothing in the gradient."""
    model = filled(arrays, "c50_edges")
    value = model.structure_loss(model.prototypes())
    assert abs(value.item()) < 1e-2
    if value.requires_grad:
        value.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@torch.no_grad()
def test_fifty_classes(arrays: Compared) -> None:
    features = source(arrays)[0]
    labels = torch.from_numpy(arrays["c50_labels"]).long()
    model = filled(arrays, "c50_edges", **MODES["submatrix"])
    prototypes = model.prototypes()
    assert_golden(model.structure_loss(prototypes), arrays["c50_pair_submatrix"], what="submatrix")
    terms = model.source_terms(features, labels, prototypes)
    del terms["structure"]
    assert_golden(model.total(terms), arrays["c50_source_total_without_structure"], what="total")


# --- source loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharp", SHARP)
@torch.no_grad()
def test_source_terms(arrays: Compared, sharp: str) -> None:
    features, labels = source(arrays)

    def terms(**changes: Any) -> tuple[SreClipModel, dict[str, Tensor]]:
        model = filled(arrays, **SHARP[sharp], **changes)
        return model, model.source_terms(features, labels, model.prototypes())

    model, values = terms(**MODES["submatrix"])
    assert_golden(model.total(values), arrays[f"{sharp}source_total_submatrix"], what="total, submatrix")
    name = "sharp_source_ce" if sharp else "source_ce_loss"
    assert_golden(values["classification"], arrays[name], what="cross-entropy")
    model, bare = terms(**MODES["without_structure"])
    assert_golden(model.total(bare), arrays[f"{sharp}source_total_without_structure"], what="total, no structure")
    if sharp:
        return
    assert_golden(values["srs"], arrays["img2cls_loss"], what="img2cls")
    model, values = terms(**MODES["submatrix"], srs_weight=0.0)
    assert "srs" not in values
    assert_golden(model.total(values), arrays["source_total_mode_True_submatrix"], what="total without img2cls")
    model, values = terms(empty_pairs="nan")
    assert np.isnan(arrays["source_total_literal"]) == model.total(values).isnan().item()


@pytest.mark.parametrize("mode", MODES)
def test_source_gradients(arrays: Compared, mode: str) -> None:
    features, labels = source(arrays)
    model = filled(arrays, **MODES[mode])
    model.total(model.source_terms(features, labels, model.prototypes())).backward()
    prefix = f"source_{mode}_"
    assert_gradients(arrays, prefix, gradients(model, arrays[f"{prefix}param_names"]))


# --- target loss -----------------------------------------------------------------------------------------------------


def by_released_name(total: Tensor, terms: Mapping[str, Tensor]) -> dict[str, float]:
    """The target loss and its terms, 0 as long as the store is not full, by the fixture's names of its columns."""
    ours = {"total": total, "entropy": terms["entropy"]}
    ours |= {"distribution": terms.get("memory", total * 0), "balance": terms.get("balance", total * 0)}
    return {name: float(value.detach()) for name, value in ours.items()}


@pytest.mark.parametrize("sharp", SHARP)
def test_target_terms(arrays: Compared, sharp: str) -> None:
    """Six batches in turn; the gradients of the last."""
    model = filled(arrays, **SHARP[sharp], unseen_share=0.3)
    memory = memory_of(arrays, model)
    rows: list[dict[str, float]] = []
    bookkeeping: list[list[int]] = []
    for features in target(arrays):
        terms = model.target_terms(features, model.prototypes(), memory)
        total = model.total(terms)
        rows.append(by_released_name(total, terms))
        assert memory.rows is not None
        bookkeeping.append([len(memory.rows), memory.pointer])
    columns = [str(name) for name in arrays["target_losses_columns"]]
    expected = arrays[f"{sharp}target_losses"]
    for column, name in enumerate(columns):
        assert_golden([row[name.split("_")[0]] for row in rows], expected[:, column], what=f"{sharp}{name}")
    assert bookkeeping == arrays["warehouse_rows_and_pointer"].tolist()
    total.backward()
    prefix = f"{sharp}target_last_"
    assert_gradients(arrays, prefix, gradients(model, arrays[f"{prefix}param_names"]))
    if not sharp:
        assert_golden(memory.rows.norm(dim=-1), arrays["warehouse_final_row_norms"], what="norms of the store")
        stored = arrays["warehouse_final_first8"]
        assert_golden(memory.rows[:, : stored.shape[1]], stored, what="the store")


@torch.no_grad()
def test_target_terms_with_the_unused_alignment(arrays: Compared) -> None:
    """The term that the released training script holds in a comment."""
    model = filled(arrays, unseen_share=0.3, target_srs_weight=0.1)
    memory = memory_of(arrays, model)
    rows: list[dict[str, float]] = []
    for features in target(arrays):
        terms = model.target_terms(features, model.prototypes(), memory)
        rows.append(by_released_name(model.total(terms), terms))
    expected = arrays["target_losses_mode_soft_unused"]
    for column, name in enumerate(str(name) for name in arrays["target_losses_columns"]):
        assert_golden([row[name.split("_")[0]] for row in rows], expected[:, column], what=name)


# --- training step ---------------------------------------------------------------------------------------------------


def test_schedule(arrays: Compared) -> None:
    config = SreClipConfig.official()
    model = filled(arrays)
    scales = [group["scale"] for group in model.optimizer().param_groups]
    for step, *expected in arrays["lr_schedule_iter_adapter_gcn"]:
        rate = learning_rate(config, int(step), PAPER_STEPS)
        np.testing.assert_allclose([rate * scale for scale in scales], expected, rtol=1e-6)


@pytest.mark.parametrize(("mode", "phase"), itertools.product(MODES, ("warmup", "main")))
def test_one_step(arrays: Compared, mode: str, phase: str) -> None:
    prefix = f"step_{mode}_{phase}_"
    model = filled(arrays, **MODES[mode], unseen_share=0.3)
    memory = memory_of(arrays, model)
    features, labels = source(arrays)
    *earlier, last = target(arrays)
    with torch.no_grad():
        for batch in earlier:
            model.remember(model.embed(batch), memory)
    prototypes = model.prototypes()
    total = model.total(model.source_terms(features, labels, prototypes))
    if phase == "main":
        target_total = model.total(model.target_terms(last, prototypes, memory))
        total = target_total + model.config.source_weight * total
    assert_golden(total, arrays[f"{prefix}total"], what="total")
    names = [str(name) for name in arrays[f"{prefix}param_names"]]
    before = {name: model.get_parameter(ours(name)).detach().clone() for name in names}
    optimizer = model.optimizer()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(model.config, {"warmup": 0, "main": 600}[phase], PAPER_STEPS) * group["scale"]
    total.backward()
    assert_gradients(arrays, prefix, gradients(model, arrays[f"{prefix}param_names"]))
    optimizer.step()
    after = {name: model.get_parameter(ours(name)).detach() for name in names}
    assert_step(arrays, prefix, before, after, SGD_STEP)
    for name, norm in zip(names, arrays[f"{prefix}param_norm_after"], strict=True):
        assert float(after[name].double().norm()) == pytest.approx(float(norm), rel=FEATURES)


def test_every_array_was_compared(arrays: Compared, request: pytest.FixtureRequest) -> None:
    """Runs last: nothing in the file was left out."""
    assert_all_compared(arrays, request, NOT_COMPARED)
