"""Runtime of the ranks: how they are started, find each other, and hear that one is lost. Floor 4."""
