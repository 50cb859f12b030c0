"""`python -m tinyarr cache`: shows the disk cache of compiled kernels and tuned choices; with --clear, empties it."""

from __future__ import annotations

import argparse

from . import cache


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tinyarr", description="Tools of tinyarr.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("cache", help="show the cache of compiled kernels and tuned choices")
    show.add_argument("--clear", action="store_true", help="remove all of it")
    chosen = parser.parse_args()
    found = cache.files()
    size = sum(f.stat().st_size for f in found)
    print(f"{cache.folder()}: {len(found)} files, {size / 2**20:.1f} MiB")
    if chosen.clear:
        for file in found:
            file.unlink(missing_ok=True)
        print("cleared")


if __name__ == "__main__":
    main()
