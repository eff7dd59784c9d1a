"""Models for other programs, with their cards."""
