"""`python -m tinyarr`: starts the ranks of a distributed run, or shows and empties the kernel cache. Floor 5."""

from __future__ import annotations

import argparse
import sys

from . import cache
from .distributed.runtime import launch
from .errors import ArgumentError, TinyarrError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tinyarr", description="Tools of tinyarr.")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands")
    start = commands.add_parser("launch", help="run a program on several ranks, which are processes of this machine")
    launch.add_arguments(start)
    start.set_defaults(run=launch.run)
    show = commands.add_parser("cache", help="show the cache of compiled kernels and tuned choices")
    show.add_argument("--clear", action="store_true", help="remove all of it, and no other file")
    show.set_defaults(run=_cache)
    chosen = parser.parse_args()
    if chosen.run is None:
        parser.print_help()
        return 2
    try:
        return chosen.run(chosen)
    except TinyarrError as error:
        parser.error(str(error))


def _cache(chosen: argparse.Namespace) -> int:
    folder = cache.folder()
    if folder is None:
        print("there is no home folder, so nothing is kept: set TINYARR_CACHE to a folder")
        return 0
    try:
        found = cache.files()
        size = sum(f.stat().st_size for f in found)
        print(f"{folder}: {len(found)} files, {size / 2**20:.1f} MiB")
        if chosen.clear:
            for file in found:
                file.unlink(missing_ok=True)
            print("cleared")
    except OSError as error:
        raise ArgumentError(f"cache: {folder} can't be read or emptied ({error}): see who owns it") from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
