"""From shards to a run folder: the loop, DeepSpeed, checkpoints, history."""
