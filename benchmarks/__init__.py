"""Benchmarks: datasets, protocols, evaluation, the runner, the store and the reports."""
