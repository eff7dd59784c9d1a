"""Batches of pixels out of shards."""
