"""Class graphs from WordNet for a graph network: synonyms, ancestors, edges, node vectors (docs/methods.md, SRE-CLIP).

Nodes are the classes, in the order given, then all their ancestors by synset name. Edges are WordNet's hypernymy;
:func:`row_normalised` makes propagation weights of them: both directions, a self loop a node, rows summing to one.
A class that is not in WordNet is a node without edges. The same names always give the same graph.

Shapes: C classes, N nodes, K edges, M messages of the graph network, E embedding width of CLIP.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.parts.backbone import Backbone
from methods.parts.feature_cache import FeatureScope, process_cache
from methods.parts.senses import choose_senses, named_synset, nearest_sense, senses, undisputed_wordnet, wordnet

GraphSource = Literal["wordnet", "none", "random"]
SenseChoice = Literal["context", "first"]


def wordnet_path() -> Path:
    """The folder, or the zip file, of the WordNet that nltk reads; nltk itself is loaded only where it must decide.

    Raises:
        WordNetError: as :func:`wordnet` does.
    """
    if (archive := undisputed_wordnet()) is not None:
        return archive
    root = wordnet()._root
    return Path(root.zipfile.filename if hasattr(root, "zipfile") else str(root))


def find_synset(name: str, synset: str = "") -> Any | None:
    """The noun synset of a class: ``synset`` if given, else the commonest sense of the class name, else None.

    Underscores, spaces and hyphens of ``name`` may replace each other, or be left out.

    Raises:
        WordNetError: WordNet is missing, or it has no synset of that name.
    """
    return named_synset(name, synset) if synset else next(iter(senses(name, strict=True)), None)


def synsets_of(names: Sequence[str], given: Mapping[str, str], choice: SenseChoice) -> list[Any | None]:
    """The synset of each class, None for a class without one: that in ``given``, else by ``choice``.

    ``first``: the commonest sense of the name; ``context``: the sense nearest to the other classes'.

    Raises:
        WordNetError: WordNet is missing, or it has no synset of a given name.
    """
    if choice == "context":
        chosen = choose_senses(names, given)
        return [chosen[name] for name in names]
    return [find_synset(name, given.get(name, "")) for name in names]


def _parents(synset: Any) -> list[Any]:
    """Direct hypernyms, instance hypernyms included, by name."""
    return sorted({*synset.hypernyms(), *synset.instance_hypernyms()}, key=lambda parent: parent.name())


def _ancestors(synsets: Iterable[Any]) -> dict[str, Any]:
    """All hypernyms of the given synsets, direct and indirect, by name."""
    ancestors: dict[str, Any] = {}
    queue = list(synsets)
    while queue:
        for parent in _parents(queue.pop()):
            if parent.name() not in ancestors:
                ancestors[parent.name()] = parent
                queue.append(parent)
    return ancestors


def _words(name: str, synset: Any | None) -> tuple[str, ...]:
    """The class name (if any), then the synset's lemmas; spaces for underscores, each word once whatever its case."""
    words = [name] if name else []
    words += [] if synset is None else synset.lemma_names()
    distinct: dict[str, str] = {}
    for word in words:
        spaced = word.replace("_", " ").strip()
        distinct.setdefault(spaced.lower(), spaced)
    return tuple(distinct.values())


@dataclass(frozen=True)
class WordGraph:
    """Classes and their ancestors.

    ``classes`` C; ``synsets`` N synset names ("" for a class without one); ``words`` N tuples of synonyms, the class
    name first; ``edges`` [K, 2] int64 (parent, child), sorted, each once; ``source``, ``seed`` and
    ``choice`` as given to :func:`build_graph`.
    """

    classes: int
    synsets: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    edges: Tensor
    source: GraphSource = "wordnet"
    seed: int = 0
    choice: SenseChoice = "context"

    @property
    def nodes(self) -> int:
        """N."""
        return len(self.synsets)


def build_graph(
    names: Sequence[str],
    synsets: Mapping[str, str] | None = None,
    *,
    source: GraphSource = "wordnet",
    seed: int = 0,
    choice: SenseChoice = "context",
) -> WordGraph:
    """The graph of C class names.

    * ``synsets``: the synset name of a class where the class name alone might mislead; ``choice``: how the synsets of
      the other classes are found (:func:`synsets_of`).
    * ``source``: "wordnet"; "random", the same nodes with every edge's parent drawn anew (from ``seed``); "none", the
      classes alone, without edges.

    Of two classes with one synset both get its parents, the first gets its children.

    Raises:
        WordNetError: WordNet is missing, or it has no synset of a given name.
    """
    of_class = synsets_of(names, synsets or {}, choice)
    node: dict[str, int] = {}
    for row, synset in enumerate(of_class):
        if synset is not None:
            node.setdefault(synset.name(), row)
    ancestors = {} if source == "none" else _ancestors(synset for synset in of_class if synset is not None)
    added = [ancestors[key] for key in sorted(ancestors.keys() - node.keys())]
    node.update({synset.name(): len(names) + row for row, synset in enumerate(added)})
    of_node = [*of_class, *added]
    edges = [] if source == "none" else _edges(enumerate(of_node), node)
    graph = WordGraph(
        classes=len(names),
        synsets=tuple("" if synset is None else synset.name() for synset in of_node),
        words=tuple(_words(name, synset) for name, synset in zip([*names, *[""] * len(added)], of_node, strict=True)),
        edges=torch.tensor(edges, dtype=torch.int64).view(-1, 2),
        source=source,
        seed=seed,
        choice=choice,
    )
    return replace(graph, edges=_rewire(graph.edges, graph.nodes, seed)) if source == "random" else graph


def extend_graph(graph: WordGraph, name: str, synset: str = "") -> tuple[WordGraph, int]:
    """The graph with one more class -> (graph, the class's node).

    It is the graph that :func:`build_graph` gives with that name too, except that the synsets of the other classes do
    not change. Old nodes keep their numbers; the class and those of its ancestors that are new follow. A class that
    was an ancestor already keeps its node, which becomes a named class. A "random" graph keeps its edges; the new edges
    start at random old nodes, drawn from the seed and the name.

    Raises:
        WordNetError: WordNet is missing, or it has no synset of that name.
    """
    if synset or graph.choice == "first":
        sense = find_synset(name, synset)
    else:
        sense = nearest_sense(name, graph.synsets[: graph.classes])
    key = "" if sense is None else sense.name()
    if key in graph.synsets[graph.classes :] and key:
        row = graph.synsets.index(key, graph.classes)
        words = (*graph.words[:row], _words(name, sense), *graph.words[row + 1 :])
        return replace(graph, words=words), row
    row = graph.nodes
    node = {key: number for number, key in reversed(list(enumerate(graph.synsets))) if key}
    ancestors = {} if sense is None or graph.source == "none" else _ancestors([sense])
    added = [ancestors[key] for key in sorted(ancestors.keys() - node.keys())]
    node.update({synset.name(): row + 1 + number for number, synset in enumerate(added)})
    new_edges = _edges(enumerate([sense, *added], start=row), node) if ancestors else []
    edges = torch.tensor(new_edges, dtype=torch.int64).view(-1, 2)
    if graph.source == "random":
        digest = hashlib.sha256(f"{graph.seed}:{name}".encode()).digest()
        edges = _rewire(edges, graph.nodes, int.from_bytes(digest[:7], "little"))
    extended = replace(
        graph,
        synsets=(*graph.synsets, key, *(synset.name() for synset in added)),
        words=(*graph.words, _words(name, sense), *(_words("", synset) for synset in added)),
        edges=torch.cat([graph.edges, edges]),
    )
    return extended, row


def _edges(numbered: Iterable[tuple[int, Any | None]], node: Mapping[str, int]) -> list[tuple[int, int]]:
    """Sorted (parent, child) of the numbered nodes and their parents."""
    pairs = {
        (node[parent.name()], child) for child, synset in numbered if synset is not None for parent in _parents(synset)
    }
    return sorted(pairs)


def _rewire(edges: Tensor, nodes: int, seed: int) -> Tensor:
    """Each edge with a random parent among the first ``nodes`` nodes, other than its child."""
    generator = torch.Generator().manual_seed(seed)
    child = edges[:, 1]
    shift = torch.randint(1, max(nodes, 2), (len(edges),), generator=generator)
    return torch.stack([(child + shift) % nodes, child], dim=1)


# --- propagation ------------------------------------------------------------------------------------------------------


def row_normalised(edges: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Propagation weights of edges [K, 2] over N nodes -> messages [2, M] (from, to) and weights [M].

    Edges both ways and one self loop a node; edges listed twice count twice; the weights into a node sum to one:
    ``Ahat[v, u] = A[u, v] / sum_u A[u, v]``. Messages are sorted by receiver, then sender.
    """
    loops = torch.arange(nodes)
    both = torch.cat([edges, edges.flip(1), torch.stack([loops, loops], dim=1)]).T.contiguous()
    from torch_geometric.utils import coalesce

    messages, counts = coalesce(both, torch.ones(both.shape[1]), num_nodes=nodes, reduce="sum", sort_by_row=False)
    incoming = torch.zeros(nodes).index_add_(0, messages[1], counts)
    return messages, counts / incoming[messages[1]]


@dataclass(frozen=True)
class Field:
    """The receptive field of some nodes: the part of the graph that a graph network of L layers reads for them.

    ``nodes`` [n]: graph nodes, the nodes in question first, then by distance and number; ``sizes`` (s_0, ..., s_L): how
    many of them are within 0, 1, ..., L steps; ``messages`` [2, M] and ``weights`` [M] between positions in ``nodes``,
    into the s_{L-1} nearest ones, sorted by receiver. Layer l of L turns s_{L-l+1} rows into s_{L-l}.
    """

    nodes: Tensor
    sizes: tuple[int, ...]
    messages: Tensor
    weights: Tensor

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """How many messages (the first ones) go into the s_0, s_1, ... nearest nodes."""
        return tuple(int((self.messages[1] < size).sum()) for size in self.sizes[:-1])

    def to(self, device: torch.device) -> "Field":
        """The field with messages and weights on another device."""
        moved = replace(self, messages=self.messages.to(device), weights=self.weights.to(device))
        _ = moved.counts  # read once, so that no training step has to wait for the device
        return moved


def receptive_field(edges: Tensor, nodes: int, rows: Sequence[int], layers: int = 2) -> Field:
    """The field of the nodes ``rows`` in a graph (edges [K, 2] over N nodes) for ``layers`` rounds of propagation."""
    (sender, receiver), weights = row_normalised(edges, nodes)
    order = torch.tensor(list(rows), dtype=torch.int64)
    known = torch.zeros(nodes, dtype=torch.bool)
    known[order] = True
    sizes = [len(order)]
    for _ in range(layers):
        near = torch.zeros_like(known)
        near[sender[known[receiver]]] = True
        order = torch.cat([order, torch.nonzero(near & ~known).flatten()])
        known |= near
        sizes.append(len(order))
    place = torch.full((nodes,), nodes)
    place[order] = torch.arange(len(order))
    used = place[receiver] < sizes[-2]
    messages = torch.stack([place[sender[used]], place[receiver[used]]])
    by_receiver = torch.argsort(messages[1] * nodes + messages[0])
    return Field(order, tuple(sizes), messages[:, by_receiver], weights[used][by_receiver])


# --- node vectors -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def text_vectors(backbone: Backbone, words: Sequence[tuple[str, ...]], template: str) -> Tensor:
    """Mean CLIP text embedding of each of n nodes' words in the ``template`` -> [n, E], L2-normalised.

    Each node is encoded in a separate batch, so that the last bits do not depend on the others, and once a process.
    """
    texts = [tuple(template.format(word) for word in node) for node in words]

    def compute(index: Tensor) -> dict[str, Tensor]:
        means = [F.normalize(backbone.encode_texts(texts[int(i)]), dim=-1).mean(dim=0) for i in index]
        return {"vector": F.normalize(torch.stack(means), dim=-1)}

    scope = FeatureScope.of(backbone, "mean text feature")
    cached = process_cache().lookup(scope, ["|".join(node) for node in texts], compute)
    return cached["vector"].to(backbone.device)
