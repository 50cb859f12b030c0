"""The command line of a model: `python -m models.gpt2 train`, with the options that `options` lists. Floor 5."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from typing import Any

from tinyarr import distributed
from tinyarr.errors import DeviceError, OutOfMemory, RankError

from .generate import generate
from .options import GenerateOptions, Stop, TrainOptions, allow_any_text, in_words
from .ranks import agree
from .run import saved_options
from .train import train


def main(model_class: type, argv: Sequence[str] | None = None) -> None:
    """Runs `train` or `generate` of a model; mistakes end in one line on stderr and exit status 2."""
    program = f"python -m models.{model_class.name}"
    allow_any_text()
    try:
        given = vars(_parser(model_class, program).parse_args(argv))  # only what the command line has
        given.pop("command")(model_class, given)
    except Stop as stop:  # on all ranks alike: one of them says so
        message, status = "" if distributed.rank() else str(stop), stop.status
    except BrokenPipeError:  # the reader, perhaps `head`, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (DeviceError, OSError, OutOfMemory, ModuleNotFoundError) as error:
        message, status = in_words(error), 2
    except RankError as error:
        message, status = str(error), 1
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    else:
        return
    if message:
        print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def _train(model_class: type, given: dict[str, Any]) -> None:
    if "resume" in given:
        given = agree(lambda: saved_options(model_class.name, given))
    train(model_class, TrainOptions(**given))


def _generate(model_class: type, given: dict[str, Any]) -> None:
    generate(model_class, GenerateOptions(**given))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise Stop(f"{message} ({self.prog} --help explains)")


def _parser(model_class: type, program: str) -> argparse.ArgumentParser:
    parser = _Parser(program, description=f"Train {model_class.name}, or let it write.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="train|generate")
    for name, table, command in [("train", TrainOptions, _train), ("generate", GenerateOptions, _generate)]:
        # argparse's own defaults are suppressed, so that what was given can be told from what was not.
        subparser = commands.add_parser(name, argument_default=argparse.SUPPRESS, allow_abbrev=False)
        subparser.set_defaults(command=command)
        groups = {title: subparser.add_argument_group(title) for title in
                  dict.fromkeys(entry.metadata["group"] for entry in fields(table))}
        for entry in fields(table):
            about = entry.metadata
            default = "" if entry.default in (None, "") else f" (default: {entry.default})"
            flag, words = f"--{entry.name.replace('_', '-')}", f"{about['meaning']}{default}"
            if entry.type == "bool":
                groups[about["group"]].add_argument(flag, help=words, action=argparse.BooleanOptionalAction)
                continue
            groups[about["group"]].add_argument(
                flag, help=words, type=_reader(entry),
                choices=tuple(model_class.sizes) if entry.name == "size" else about["choices"])
    return parser


def _reader(entry: Field) -> Callable[[str], Any]:
    """Turns a word of the command line into the option's type, and checks its range."""
    kind = {"int": int, "float": float, "str": str}[entry.type.partition(" ")[0]]
    least, most = entry.metadata["least"], entry.metadata["most"]

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most):
            limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' * (kind is int)}number {limits}")
        return value

    return str if kind is str else read
