import dataclasses
import os
import signal
from pathlib import Path

import click
import pytest
import torch
from conftest import invoke

from torch_utils.command_line import (
    Command,
    Group,
    NearestChoice,
    Ranges,
    UserError,
    Words,
    dataclass_options,
    nearest,
    parse_ranges,
)
from torch_utils.files import atomic_write, format_time, replace_folder
from torch_utils.misc import free_memory
from training.config import option


@pytest.mark.parametrize(
    ("text", "numbers"), [("0", [0]), ("0,5-9", [0, 5, 6, 7, 8, 9]), ("3-3,1", [3, 1]), (" 2 , 4 ", [2, 4])]
)
def test_ranges(text: str, numbers: list[int]) -> None:
    assert parse_ranges(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "1-", "-3", "5-2", "1,,2", "1.5"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="is not a number or an ascending range"):
        parse_ranges(text)


@pytest.mark.parametrize("text", ["5000000000", "0-99999999"])
def test_ranges_too_large(text: str) -> None:
    with pytest.raises(UserError, match="is too large"):
        parse_ranges(text)


@click.command(cls=Command)
@click.option("--files", cls=Words)
@click.option("--rows", type=Ranges())
@click.option("--color", type=NearestChoice(["green", "blue"], {"g": "green"}))
@click.option("--fail", is_flag=True)
def example(files: tuple[str, ...], rows: list[int] | None, color: str | None, fail: bool) -> int:
    if fail:
        raise UserError("--fail was\n given;   expected not to be")
    click.echo(f"{list(files)} {rows} {color}")
    return 3


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        (["--files", "a.png", "b c.png", "--rows=1-2"], "['a.png', 'b c.png'] [1, 2] None"),
        (["--files=a.png", "b.png"], "['a.png', 'b.png'] None None"),
        (["--color", "g"], "[] None green"),
        ([], "[] None None"),
    ],
)
def test_words_take_all_up_to_the_next_flag(args: list[str], shown: str) -> None:
    result = invoke(example, *args)
    assert (result.output.strip(), result.exit_code) == (shown, 3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--files"], "--files is followed by nothing"),
        (["--files", "--fail"], "--files is followed by nothing"),
        (["--fail"], "Error: --fail was given; expected not to be\n"),
        (["--colr=blue"], "--color"),
        (["--color=blu"], "'blu' is not one of green, blue. Did you mean 'blue'?"),
        (["--rows=a"], "'a' is not a number"),
        (["stray"], "stray"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(args: list[str], message: str) -> None:
    result = invoke(example, *args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_bugs_keep_their_traceback() -> None:
    @click.command(cls=Command)
    def broken() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        invoke(broken)


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM")
def test_sigterm_leaves_no_half_written_file(tmp_path: Path) -> None:
    @click.command(cls=Command)
    def main() -> None:
        with atomic_write(tmp_path / "out.png") as file:
            file.write(b"half")
            file.flush()
            signal.raise_signal(signal.SIGTERM)

    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert invoke(main).exit_code == 143
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_group_offers_the_nearest_command() -> None:
    @click.group(cls=Group)
    def tools() -> None: ...

    @tools.command()
    def convert() -> None: ...

    assert "Did you mean 'convert'?" in invoke(tools, "converts").stderr
    empty = invoke(tools)
    assert (empty.exit_code, empty.stderr) == (2, "Error: no command given; there are: convert (and --help)\n")


def test_dataclass_fields_become_flags() -> None:
    @dataclasses.dataclass(frozen=True)
    class Options:
        num_things: int = option(3, "Things.", unit="N")
        share: float | None = option(None, "A share.")
        loud: bool = option(False, "Shout.")
        mode: str = option("a", "Mode.", choices=("a", "b"))
        limit: int | None = option(None, "A limit.", resumable=True)

    @click.command(cls=Command)
    @dataclass_options(Options)
    def show(**flags: object) -> None:
        click.echo(str(flags))

    assert eval(invoke(show).output) == {"num_things": None, "share": None, "loud": None, "mode": None, "limit": None}
    given = invoke(show, "--num-things=5", "--share=0.5", "--no-loud", "--mode=b", "--limit=7").output
    assert eval(given) == {"num_things": 5, "share": 0.5, "loud": False, "mode": "b", "limit": 7}
    assert eval(invoke(show, "--limit=none").output)["limit"] == "none"
    assert "'none' is not a valid float" in invoke(show, "--share=none").stderr
    assert "[default: 3]" in invoke(show, "--help").output


def test_nearest_is_silent_when_nothing_is_near() -> None:
    assert nearest("tiyn", ["tiny", "auto"]) == " Did you mean 'tiny'?"
    assert nearest("xyzzy", ["tiny", "auto"]) == ""


def test_atomic_files_and_folders_are_whole_or_not_there(tmp_path) -> None:  # type: ignore[no-untyped-def]
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(target) as file:
        file.write(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    with atomic_write(target) as file:
        file.write(b"new")
    assert target.read_bytes() == b"new"
    folder = tmp_path / "folder"
    for content in ("1", "2"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "inside").write_text(content)
        replace_folder(tmp_path / "new", folder)
        assert (folder / "inside").read_text() == content
    (tmp_path / "new").mkdir()
    with pytest.raises(OSError):
        replace_folder(tmp_path / "new", target)
    (tmp_path / "new").rmdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (folder / "inside").read_text() == "2"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (59.4, "59s"), (60, "1m 00s"), (3599, "59m 59s"), (11220, "3h 07m"), (187200, "2d 04h")],
)
def test_format_time(seconds: float, shown: str) -> None:
    assert format_time(seconds) == shown


def test_free_memory_heeds_the_limit_of_a_container(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("torch_utils.misc.CONTAINER", tmp_path)
    machine = free_memory(torch.device("cpu"))
    (tmp_path / "memory.current").write_text("1000\n")
    for limit, free in (("max", machine), ("5000", 4000), ("500", 0)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        assert free_memory(torch.device("cpu")) == pytest.approx(free, rel=0.2)
