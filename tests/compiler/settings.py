"""A module whose variables a test changes."""

factor = 2
