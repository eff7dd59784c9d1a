"""Data: a raw data set -> samples -> WebDataset shards -> batches. Knows nothing of the model."""
