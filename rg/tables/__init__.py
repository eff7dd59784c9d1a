"""Figures as text and Markdown."""
