"""How every script of this project talks to its user.

A user's mistake is one line on standard error that says what was given, what was expected and what to do, and exit
code 2. Library code raises `UserError` for it; click's own errors (unknown option, bad value) come out the same way.
Anything else is a bug and keeps its traceback.
"""

import contextlib
import dataclasses
import difflib
import os
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

NONE = "none"  # takes a value back
LARGEST, MOST = 1 << 32, 10_000_000  # what seeds NumPy's generators; a range that fits the memory


class UserError(ValueError):
    """A mistake the user can mend. The message is one sentence or two: given, expected, remedy."""


def nearest(word: str, candidates: Iterable[str]) -> str:
    """' Did you mean X?' for the candidate closest in spelling to `word`, or '' when none is close."""
    match = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


class NearestChoice(click.Choice[str]):
    """A choice that offers the nearest match when the value is unknown, and takes older names for some values."""

    def __init__(self, choices: Sequence[str], aliases: Mapping[str, str] | None = None) -> None:
        super().__init__(choices)
        self.aliases = dict(aliases or {})

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return super().convert(self.aliases.get(value, value), param, ctx)
        except click.BadParameter:
            choices = [str(choice) for choice in self.choices]
            self.fail(f"{value!r} is not one of {', '.join(choices)}.{nearest(str(value), choices)}", param, ctx)


class _OneLineErrors:
    """Mixed into click's command classes: errors are one line, exit code 2, also when called from a test runner."""

    def main(self, args: Sequence[str] | None = None, standalone_mode: bool = True, **extra: Any) -> Any:
        if not standalone_mode:
            return super().main(args=args, standalone_mode=False, **extra)  # type: ignore[misc]
        try:
            with _cleaning_up_on_sigterm():
                result = super().main(args=args, standalone_mode=False, **extra)  # type: ignore[misc]
        except (click.ClickException, UserError) as error:
            text = error.format_message() if isinstance(error, click.ClickException) else str(error)
            rank = os.environ.get("RANK", "0")  # of several processes
            whose = "" if rank == "0" else f"rank {rank}: "
            click.echo(f"Error: {whose}{' '.join(text.split())}", err=True)
            sys.exit(2)
        except (click.Abort, KeyboardInterrupt):
            click.echo("Interrupted.", err=True)
            sys.exit(130)
        sys.exit(result if isinstance(result, int) else 0)


@contextlib.contextmanager
def _cleaning_up_on_sigterm() -> Iterator[None]:
    """Within the block SIGTERM ends the process as an exception does, so that half-written files are removed.

    Not one of several processes: while it waits for the others it would not hear.
    """
    alone = os.environ.get("WORLD_SIZE", "1") == "1" and threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Words(click.Option):
    """An option that takes all words up to the next flag: `--instance-images a.png b.png`."""

    def __init__(self, *declarations: Any, **attributes: Any) -> None:
        super().__init__(*declarations, **attributes | {"multiple": True})


class Command(_OneLineErrors, click.Command):  # type: ignore[misc]
    """`@click.command(cls=Command)`: a script with one job."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        flags = {flag for param in self.params if isinstance(param, Words) for flag in param.opts}
        return super().parse_args(ctx, _repeat_flags(args, flags))


def _repeat_flags(args: Sequence[str], flags: set[str]) -> list[str]:
    """`--x a b` -> `--x a --x b` for the flags in question."""
    spread: list[str] = []
    current = ""  # the flag whose words we are in
    for position, word in enumerate(args):
        name = word.partition("=")[0]
        if word.startswith("-"):
            current = name if name in flags else ""
            if word not in flags:
                spread.append(word)
            elif position + 1 == len(args) or args[position + 1].startswith("-"):
                raise UserError(f"{word} is followed by nothing; expected one or more words")
        else:
            spread += [current, word] if current else [word]
    return spread


class Group(_OneLineErrors, click.Group):  # type: ignore[misc]
    """`@click.group(cls=Group)`: a script with sub-commands; an unknown one is answered with the nearest name."""

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            raise UserError(f"no command given; there are: {', '.join(self.list_commands(ctx))} (and --help)")
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:
            names = self.list_commands(ctx)
            raise UserError(f"No such command {args[0]!r}; there are: {', '.join(names)}.{nearest(args[0], names)}")
        return super().resolve_command(ctx, args)


def parse_ranges(text: str) -> list[int]:
    """'0,5-9' -> [0, 5, 6, 7, 8, 9].

    Raises:
        UserError: not a comma-separated list of numbers >= 0 and ascending ranges.
    """
    values: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UserError(f"{part.strip()!r} is not a number or an ascending range; write for example 0,5-9.")
        if int(last or first) >= LARGEST or int(last or first) - int(first) > MOST:
            raise UserError(f"{part.strip()!r} is too large; expected numbers below 2^32, at most {MOST:,} in a range.")
        values.extend(range(int(first), int(last or first) + 1))
    return values


class Ranges(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """Option type for `parse_ranges`."""

    name = "ranges"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            return parse_ranges(value)
        except UserError as error:
            self.fail(str(error), param, ctx)


class OrNone(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """Option type of a value that can be taken back: the word none stays a word, all else is of the type `kind`."""

    def __init__(self, kind: type) -> None:
        self._kind = click.types.convert_type(kind)
        self.name = self._kind.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == NONE else self._kind.convert(value, param, ctx)


def dataclass_options(*classes: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A flag for every field of the dataclasses, `channel_base` -> `--channel-base`; a flag not given is None.

    The field's metadata says the rest: `help`, `choices`, `aliases`, `unit`. A bool becomes `--mirror/--no-mirror`.
    What is `resumable` and has no default takes the word none, too.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for cls in reversed(classes):
            kinds = typing.get_type_hints(cls)
            for field in reversed(dataclasses.fields(cls)):
                function = _flag(field, kinds[field.name])(function)
        return function

    return decorate


def _flag(field: dataclasses.Field[Any], annotation: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    kind = next(kind for kind in (typing.get_args(annotation) or (annotation,)) if kind is not type(None))
    name, text = field.name.replace("_", "-"), str(field.metadata["help"])
    if field.default is not None and field.default != "":
        shown = ("on" if field.default else "off") if kind is bool else field.default
        text += f"  [default: {shown}]"
    if kind is bool:
        return click.option(f"--{name}/--no-{name}", field.name, default=None, help=text)
    choices = field.metadata["choices"]
    plain = OrNone(kind) if field.default is None and field.metadata["resumable"] else kind
    return click.option(
        f"--{name}",
        field.name,
        default=None,
        help=text,
        type=NearestChoice(choices, field.metadata["aliases"]) if choices else plain,
        metavar=None if choices else field.metadata["unit"] or kind.__name__.upper(),
    )
