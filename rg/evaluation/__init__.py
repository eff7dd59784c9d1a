"""A run measured by the protocols of the paper."""
