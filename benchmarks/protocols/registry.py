"""All protocols by name. Third parties: entry-point group ``ucdr_bench.protocols``."""

from __future__ import annotations

from methods.registry import Registry

PROTOCOLS: Registry = Registry("protocol", "ucdr_bench.protocols")

for _name, _summary in (
    ("ucdr", "unseen domain, unseen classes"),
    ("uccdr", "seen domains, unseen classes"),
    ("udcdr", "unseen domain, seen classes"),
):
    PROTOCOLS.add(_name, f"benchmarks.protocols.{_name}:PROTOCOL", summary=_summary)
