"""Benchmarks: each prints its figures, and appends them to a ledger in ``results`` when asked to."""
