"""Many processes as one: who is who, collectives, signs of life, and what all must have in common."""
