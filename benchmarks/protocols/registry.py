"""All protocols by name. Third parties: entry-point group ``ucdr_bench.protocols``."""

from __future__ import annotations

from methods.registry import Registry

PROTOCOLS: Registry = Registry("protocol", "ucdr_bench.protocols")

for _name, _summary in (
    ("ucdr", "unseen domain, unseen classes"),
    ("uccdr", "seen domains, unseen classes"),
    ("udcdr", "unseen domain, seen classes"),
    ("uda", "labelled source, unlabelled target, closed class set"),
    ("dazsl", "labelled source of seen classes, unlabelled target of seen and unseen ones"),
):
    PROTOCOLS.add(_name, f"benchmarks.protocols.{_name}:PROTOCOL", summary=_summary)

PROTOCOLS.add(
    "dg",
    "benchmarks.protocols.dg:PROTOCOL",
    summary="classify a domain that no training sees, closed class set (by name only)",
    by_default=False,
)
PROTOCOLS.add(
    "uda_inductive",
    "benchmarks.protocols.uda:INDUCTIVE",
    summary="uda whose test images no training sees (by name only)",
    by_default=False,
)
