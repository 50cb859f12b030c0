"""Operations that people expect besides: of sets, sorted, scanned, tiled. Floor 5."""
