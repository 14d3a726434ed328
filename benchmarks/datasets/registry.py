"""All datasets by name. Third parties: entry-point group ``ucdr_bench.datasets``."""

from __future__ import annotations

from methods.registry import Registry

DATASETS: Registry = Registry("dataset", "ucdr_bench.datasets")

for _name, _target, _summary in (
    ("picto_domains", "benchmarks.datasets.picto_domains:PictoDomains", "embedded: drawings in eight styles"),
    ("domainnet", "benchmarks.datasets.domainnet:DomainNet", "345 classes in six domains; 45 test classes"),
    ("sketchy", "benchmarks.datasets.sketchy:Sketchy", "Sketchy Extended, 21 test classes (ECCV 2018 split)"),
    ("sketchy_random", "benchmarks.datasets.sketchy:SketchyRandom", "Sketchy Extended, 25 test classes (random split)"),
    ("tuberlin", "benchmarks.datasets.tuberlin:TUBerlin", "TU-Berlin Extended, 30 test classes"),
    ("folder", "benchmarks.datasets.folder:Folder", "your own pictures: any ROOT/domain/class/* tree"),
):
    DATASETS.add(_name, _target, summary=_summary)
