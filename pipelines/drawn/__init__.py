"""Data sets that are drawn: birds, fish, beetles and flowers with exact parts."""
