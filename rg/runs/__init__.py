"""What a run is on disk: its files, names of parts, confidence, and how its images are read."""
