"""Samples in tar files: written, listed, read, checked and repaired."""
