"""Language models written on tinyarr, and what trains them: each file can be read from top to bottom. Floor 5."""
