"""The page and JSON API of ``python -m rg serve``."""
