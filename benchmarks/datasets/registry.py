"""All datasets by name. Third parties: entry-point group ``ucdr_bench.datasets``."""

from __future__ import annotations

from methods.registry import Registry

DATASETS: Registry = Registry("dataset", "ucdr_bench.datasets")

for _name, _target, _summary in (
    ("picto_domains", "benchmarks.datasets.picto_domains:PictoDomains", "embedded: drawings in eight styles"),
):
    DATASETS.add(_name, _target, summary=_summary)
