"""Interrupted conversions: what is kept, what is thrown away, and who may write."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import invoke
from format_samples import picture, write_images

import dataset_tool
from training import conversion
from training.partial_zip import Finished, PartialZip

ROOT = Path(dataset_tool.__file__).parent
NAMES = [f"{kind}/{i}.png" for kind in ("a", "b") for i in range(6)]


class Killed(BaseException):
    """Stands for kill -9: nothing may be done on the way out."""


@pytest.fixture
def arguments(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.setattr("training.partial_zip.CHECKPOINT_SEC", 0.0)
    write_images(tmp_path / "in", NAMES)
    (tmp_path / "out").mkdir()
    return ["convert", "--source", str(tmp_path / "in"), "--dest", str(tmp_path / "out" / "o.zip"), "--workers=1"]


def killed_after(count: int, arguments: list[str]) -> None:
    plain, leave, begun = conversion.convert_file, PartialZip.__exit__, []

    def convert_file(file, recipe):
        begun.append(file.name)
        if len(begun) > count:
            raise Killed
        return plain(file, recipe)

    def drop_all(self, *error):  # what the kernel does: files are closed, and with them the lock goes
        self._journal.detach().close()
        self._stream.detach().close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "convert_file", convert_file)
        patch.setattr(PartialZip, "__exit__", drop_all)
        with pytest.raises(Killed):
            dataset_tool.main(arguments, standalone_mode=False)
    assert PartialZip.__exit__ is leave


def convert(arguments: list[str], *more: str) -> str:
    result = invoke(dataset_tool.main, *arguments, *more)
    assert result.exit_code == 0, result.output
    return result.stdout


def leftovers(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").iterdir())


@pytest.fixture
def whole(arguments, tmp_path) -> bytes:
    """The zip as an uninterrupted call writes it."""
    convert([*arguments, "--dest", str(tmp_path / "whole.zip")])
    return (tmp_path / "whole.zip").read_bytes()


def test_goes_on_behind_what_is_done(arguments, tmp_path, whole):
    killed_after(5, arguments)  # the first image is looked at twice, for its colour
    said = convert(arguments)
    assert "Going on: 4 of 12 images are done already." in said
    assert (tmp_path / "out" / "o.zip").read_bytes() == whole
    assert leftovers(tmp_path) == ["o.convert-report.json", "o.zip"]
    assert json.loads((tmp_path / "out" / "o.convert-report.json").read_text())["continued_from"] == 4


@pytest.mark.parametrize("damage", ["byte of an image", "torn image", "torn line", "no journal", "no images"])
def test_damage_is_found_and_done_again(damage, arguments, tmp_path, whole):
    killed_after(7, arguments)
    partial, journal = tmp_path / "out" / ".o.zip.partial", tmp_path / "out" / ".o.zip.journal"
    content = bytearray(partial.read_bytes())
    if damage == "byte of an image":
        content[len(content) // 2] ^= 1
        partial.write_bytes(content)
    elif damage == "torn image":
        partial.write_bytes(content[:-100])
    elif damage == "torn line":
        journal.write_bytes(journal.read_bytes()[:-9])
    elif damage == "no journal":
        journal.unlink()
    else:
        partial.write_bytes(b"")
    said = convert(arguments)
    assert ("Going on" in said) == (damage not in ("no journal", "no images"))
    assert (tmp_path / "out" / "o.zip").read_bytes() == whole and len(leftovers(tmp_path)) == 2


def test_killed_twice(arguments, tmp_path, whole):
    killed_after(4, arguments)
    killed_after(5, arguments)
    said = convert(arguments, "--workers=1")
    assert "Going on: " in said and (tmp_path / "out" / "o.zip").read_bytes() == whole


@pytest.mark.parametrize("change", ["option", "file", "new file"])
def test_what_was_made_otherwise_is_thrown_away(change, arguments, tmp_path):
    killed_after(5, arguments)
    if change == "file":
        picture(99, 16, 16).save(tmp_path / "in" / NAMES[0], compress_level=0)
    elif change == "new file":
        picture(99).save(tmp_path / "in" / "a" / "00.png")
    more = ["--resize-filter=box"] if change == "option" else []
    said = convert(arguments, *more)
    assert "Starting anew: " in said and "Going on" not in said
    convert([*arguments, "--dest", str(tmp_path / "whole.zip"), *more])
    assert (tmp_path / "out" / "o.zip").read_bytes() == (tmp_path / "whole.zip").read_bytes()


def test_number_of_workers_may_change(arguments, tmp_path, whole, monkeypatch):
    killed_after(5, arguments)
    monkeypatch.setattr(conversion, "MIN_FILES_PER_WORKER", 1)
    assert "Going on: 4" in convert(arguments, "--workers=2")
    assert (tmp_path / "out" / "o.zip").read_bytes() == whole


def test_colour_found_late_is_remembered(arguments, tmp_path):
    for name in NAMES[:3]:
        picture(0).convert("L").save(tmp_path / "in" / name)
    convert([*arguments, "--dest", str(tmp_path / "whole.zip")])
    killed_after(2, arguments)  # while it still hopes for grey
    assert "Going on: 1" in convert(arguments)
    (tmp_path / "out" / "o.zip").unlink()
    killed_after(10, arguments)  # 1 look, 3 grey, 1 of colour, then again in RGB
    assert "Going on: 5" in convert(arguments)
    assert (tmp_path / "out" / "o.zip").read_bytes() == (tmp_path / "whole.zip").read_bytes()


def test_old_zip_stays_until_the_new_one_is_whole(arguments, tmp_path, whole):
    (tmp_path / "out" / "o.zip").write_bytes(b"old")
    killed_after(5, [*arguments, "--overwrite"])
    assert (tmp_path / "out" / "o.zip").read_bytes() == b"old"
    convert(arguments, "--overwrite")
    assert (tmp_path / "out" / "o.zip").read_bytes() == whole


def test_mistakes_leave_nothing(arguments, tmp_path, refused):
    picture(3, 32, 32).save(tmp_path / "in" / NAMES[-1])
    assert "expected one size for all" in refused(dataset_tool.main, *arguments)
    assert leftovers(tmp_path) == []


def test_full_disk_keeps_what_is_done(arguments, tmp_path, refused, whole, monkeypatch):
    plain = dataset_tool.DatasetWriter.add
    with monkeypatch.context() as patch:
        calls = []

        def add(self, png):
            calls.append(png)
            if len(calls) > 3:
                raise OSError(28, "No space left on device")
            return plain(self, png)

        patch.setattr(dataset_tool.DatasetWriter, "add", add)
        error = refused(dataset_tool.main, *arguments)
        assert "No space left on device" in error and "the same command again" in error
    assert "Going on: 3 of 12" in convert(arguments)
    assert (tmp_path / "out" / "o.zip").read_bytes() == whole


def test_second_process_is_refused_and_told_by_whom(arguments, tmp_path, refused):
    with PartialZip(tmp_path / "out" / "o.zip", "key") as partial:
        partial.begin("rgb")
        partial.add(Finished("x", 0, 1, 1, 0, 0, "refused"), b"")
        error = refused(dataset_tool.main, *arguments)
        assert f"is being written by process {os.getpid()}; wait for it" in error
    assert "Starting anew" in convert(arguments)


def test_lock_is_not_fooled_by_a_finished_neighbour(tmp_path, monkeypatch):
    """The other process renames its file to the final name just before we lock it: we must not write into that."""
    import fcntl

    dest = tmp_path / "o.zip"
    plain, calls = fcntl.flock, []

    def flock(stream, how):
        calls.append(how)
        if len(calls) == 1:
            (tmp_path / ".o.zip.partial").rename(dest)
            dest.write_bytes(b"finished by the other")
        plain(stream, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with PartialZip(dest, "key") as partial:
        partial.begin("rgb")
    assert dest.read_bytes() == b"finished by the other" and len(calls) == 2


@pytest.mark.slow
def test_kill_9_of_everything_with_workers(tmp_path):
    """As a user does it: a real process with real workers, killed; no worker stays, the same command goes on."""
    write_images(tmp_path / "in", [f"{i:03d}.png" for i in range(240)], width=256, height=256)
    command = [
        sys.executable,
        str(ROOT / "dataset_tool.py"),
        "convert",
        "--source",
        str(tmp_path / "in"),
        "--workers=2",
    ]
    command += ["--resolution=128", "--dest"]
    process = subprocess.Popen([*command, str(tmp_path / "o.zip")], stdout=subprocess.DEVNULL)
    journal, limit = tmp_path / ".o.zip.journal", time.monotonic() + 30
    while not (journal.exists() and b"[" in journal.read_bytes()) and time.monotonic() < limit:
        time.sleep(0.05)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    limit = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < limit:
        time.sleep(0.05)
    assert workers and not any(Path(f"/proc/{pid}").exists() for pid in workers)
    again = subprocess.run([*command, str(tmp_path / "o.zip")], capture_output=True, text=True, check=True)
    subprocess.run([*command, str(tmp_path / "whole.zip")], capture_output=True, check=True)
    assert "Going on: " in again.stdout
    assert (tmp_path / "o.zip").read_bytes() == (tmp_path / "whole.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "o.zip") as archive:
        assert archive.testzip() is None and len(archive.namelist()) == 241
