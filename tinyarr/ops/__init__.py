"""Operations: the scalar language, primitives and `apply`, then one file a family. Floor 1."""
