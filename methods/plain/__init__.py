"""Plain forms of fast paths: the equations as they are written, for ``fast=False`` and for tests."""
