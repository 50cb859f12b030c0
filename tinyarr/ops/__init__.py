"""What the operations are: the scalar language, primitives and `apply`, then one file a family."""
