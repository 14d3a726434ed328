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
    ("office_home", "benchmarks.datasets.office_home:OfficeHome", "65 classes in four domains; 12 transfers"),
    ("mini_domainnet", "benchmarks.datasets.mini_domainnet:MiniDomainNet", "126 classes of DomainNet; 12 transfers"),
    ("visda", "benchmarks.datasets.visda:VisDA", "VisDA-2017: 12 classes, synthetic to real"),
    ("pacs", "benchmarks.datasets.pacs:PACS", "7 classes in four domains; 12 transfers"),
    ("vlcs", "benchmarks.datasets.vlcs:VLCS", "5 classes in four sets of photographs"),
    ("terra_incognita", "benchmarks.datasets.terra_incognita:TerraIncognita", "10 animals at four camera traps"),
    ("i2awa", "benchmarks.datasets.i2awa:I2AwA", "3D2 to AwA2: 40 seen and 10 unseen animals"),
    ("i2webv", "benchmarks.datasets.i2webv:I2WebV", "ImageNet to WebVision: 1,000 seen classes of 5,000"),
    ("folder", "benchmarks.datasets.own_folder:OwnFolder", "your own images: any ROOT/domain/class/* tree"),
):
    DATASETS.add(_name, _target, summary=_summary)

DATASETS.add(
    "visda_test",
    "benchmarks.datasets.visda:VisDATest",
    summary="VisDA-2017 with the challenge's test images as target (by name only)",
    by_default=False,
)
DATASETS.add(
    "domainnet_245",
    "benchmarks.datasets.domainnet:DomainNet245",
    summary="DomainNet whose official rules train on 245 classes, as UCDR-Adapter's code (by name only)",
    by_default=False,
)
