"""Memory of a program: aliases, lifetimes, and offsets in one arena. Floor 2."""
