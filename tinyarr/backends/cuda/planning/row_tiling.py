"""Rows held in registers: how many threads take a row, and how many elements each of them (rows.cu). Floor 3."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .... import views
from .registry import Operand, Source
from .types import TYPES, packed, wide

HELD = 64  # elements in registers that a thread of a lone warp takes of a row; threads of larger groups half as many
ROWS = 4  # rows of a block, where a warp takes a row


class Rows:
    """Tiling of the rows of x over blocks and threads.

    arrays: as long as a row, that are held. count: of rows. together: rows of a block. grid, block: of a launch that
    takes each row once.
    """

    def __init__(self, x: Operand, arrays: int = 2):
        self.count = views.size(x.shape[:-1])
        self._dtype, self._columns = x.dtype, x.shape[-1]
        self._threads = 32 if self._columns <= 32 * HELD * 2 // arrays else 128
        while 32 < self._threads < 1024 and self._threads * HELD // 2 < self._columns:
            self._threads *= 2
        self.together = ROWS if self._threads == 32 else 1
        self.block = (self._threads * self.together, 1, 1)
        self.grid = (-(-self.count // self.together), 1, 1)

    def source(self, files: Sequence[str], aligned: bool, slots: Sequence[str], **macros: float | str) -> Source:
        """Files after rows.cu. slots: the macros of its kernels' slots, filled with pointers."""
        types = {"T": TYPES[self._dtype], "A": wide(self._dtype)}
        pointers = {name: "T *" if name.startswith("TO_") else "const T *" for name in slots}
        every = {**types, **self.macros(packed(self._dtype), aligned), **pointers, **macros}
        return Source(("types.cuh", "rows.cu", *files), tuple((k, str(v)) for k, v in every.items()))

    def macros(self, pack: int, aligned: bool) -> dict[str, int]:
        """Returns the sizes of rows.cu; a thread takes `pack` elements at once where that divides a row."""
        pack = math.gcd(pack, self._columns)
        sizes = {"C": self._columns, "PACK": pack, "PACKS": -(-self._columns // (self._threads * pack))}
        return sizes | {"THREADS": self._threads, "ROWS": self.together, "ALIGNED": int(aligned)}
