import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from torch_utils.command_line import UserError
from training.checkpoint import Recipe, Snapshot, load_snapshot, read_state, restore_state, save_snapshot, save_state
from training.condition import Condition, Exemplars
from training.system import DataShape


def make_snapshot() -> Snapshot:
    exemplars = Exemplars(
        Condition(torch.eye(2), torch.randn(2, 3)),
        torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8),
        ["a.png", "b.png"],
        {"name": "pca", "h_dim": 3},
        {"mean": torch.randn(4)},
    )
    recipe = Recipe("stylegan2", {"z_dim": 8}, DataShape(8, 1, 2, 3), {"cfg": "tiny"})
    return Snapshot(recipe, {"G_ema": {"weight": torch.randn(3, 3)}}, exemplars, 1234)


def test_snapshot_comes_back_whole(tmp_path: Path) -> None:
    snapshot = make_snapshot()
    save_snapshot(tmp_path / "s.pt", snapshot)
    back = load_snapshot(tmp_path / "s.pt")
    assert back.recipe == snapshot.recipe
    assert back.cur_nimg == 1234
    assert torch.equal(back.networks["G_ema"]["weight"], snapshot.networks["G_ema"]["weight"])
    assert torch.equal(back.exemplars.condition.h, snapshot.exemplars.condition.h)
    assert torch.equal(back.exemplars.images, snapshot.exemplars.images)
    assert back.exemplars.extractor == snapshot.exemplars.extractor
    assert torch.equal(back.exemplars.extractor_state["mean"], snapshot.exemplars.extractor_state["mean"])


def test_snapshot_needs_nothing_of_ours_to_be_read(tmp_path: Path) -> None:
    save_snapshot(tmp_path / "s.pt", make_snapshot())
    code = (
        "import sys, json, torch\n"
        "content = torch.load(sys.argv[1], weights_only=True)\n"
        "print(json.loads(content['config'])['system'])\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s.pt")], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "stylegan2"


def with_another_weight(path: Path) -> bytes:
    """One bit of a tensor is another one: what torch reads without a word."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = next(entry for entry in archive.infolist() if "/data/" in entry.filename and entry.file_size > 4)
        start = content.index(archive.read(entry))
    content[start + 2] ^= 1
    return bytes(content)


def damaged_copies(path: Path) -> list[Path]:
    whole = path.read_bytes()
    copies = {
        "cut.pt": whole[: len(whole) // 2],
        "short.pt": whole[:10],
        "empty.pt": b"",
        "text.pt": b"not a snapshot",
        "flipped.pt": whole[:200] + bytes(64) + whole[264:],
        "one-bit.pt": with_another_weight(path),
    }
    for name, content in copies.items():
        (path.parent / name).write_bytes(content)
    return [path.parent / name for name in copies]


def test_damaged_snapshots_are_named(tmp_path: Path) -> None:
    save_snapshot(tmp_path / "s.pt", make_snapshot())
    for copy in damaged_copies(tmp_path / "s.pt"):
        with pytest.raises(UserError, match=rf"--network=.*{copy.name}"):
            load_snapshot(copy)
    with pytest.raises(UserError, match="does not exist"):
        load_snapshot(tmp_path / "none.pt")


def test_a_folder_in_the_place_of_a_snapshot_is_answered_with_what_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a file; expected a file written by train\.py$"):
        load_snapshot(tmp_path)
    for kimg in (1, 12):
        save_snapshot(tmp_path / f"network-snapshot-{kimg:06d}.pt", make_snapshot())
    with pytest.raises(UserError, match=r"such as .*/network-snapshot-000012\.pt$"):
        load_snapshot(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"is loaded by icgan\.load, from Python$"):
        load_snapshot(tmp_path)


def test_foreign_and_newer_files_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match="is not a snapshot"):
        load_snapshot(tmp_path / "foreign.pt")
    save_state(tmp_path / "training-state-000000.pt", {}, {"cur_nimg": 0})
    with pytest.raises(UserError, match="is not a snapshot"):
        load_snapshot(tmp_path / "training-state-000000.pt")
    save_snapshot(tmp_path / "s.pt", make_snapshot())
    content = torch.load(tmp_path / "s.pt", weights_only=True)
    torch.save(content | {"format": 2}, tmp_path / "s.pt")
    with pytest.raises(UserError, match="format 2; this version reads up to 1"):
        load_snapshot(tmp_path / "s.pt")


def test_code_in_a_snapshot_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"kind": "stylegan2_icgan snapshot", "format": 1, "config": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil\.pt can't be read"):
        load_snapshot(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_states_are_kept_two_at_a_time_and_refused_when_damaged(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    for kimg in (1, 2, 3):
        save_state(tmp_path / f"training-state-{kimg:06d}.pt", {"G": network}, {"cur_nimg": kimg * 1000})
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["training-state-000002.pt", "training-state-000003.pt"]
    other = torch.nn.Linear(2, 2)
    assert restore_state(read_state(tmp_path / names[-1]), {"G": other})["cur_nimg"] == 3000
    assert torch.equal(other.weight, network.weight)
    for copy in damaged_copies(tmp_path / names[-1]):
        with pytest.raises(UserError, match=rf"--resume=.*{copy.name} can't be read"):
            read_state(copy)
    with pytest.raises(UserError, match=r"is older than training-state-000003\.pt"):
        read_state(tmp_path / names[0])
    with pytest.raises(UserError, match=r"holds \['G'\]; this run needs \['D', 'G'\]"):
        restore_state(read_state(tmp_path / names[-1]), {"G": other, "D": other})
    with pytest.raises(UserError, match="G in the state has other shapes"):
        restore_state(read_state(tmp_path / names[-1]), {"G": torch.nn.Linear(3, 3)})


def test_a_full_disk_leaves_the_last_state_whole(tmp_path: Path) -> None:
    """The file size limit of the process stands in for the disk: writes fail in the middle with an OSError."""
    code = """
import resource, sys, torch
from pathlib import Path
from training.checkpoint import read_state, restore_state, save_state
run = Path(sys.argv[1])
save_state(run / "training-state-000001.pt", {"G": torch.nn.Linear(10, 10)}, {"cur_nimg": 1000})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_state(run / "training-state-000002.pt", {"G": torch.nn.Linear(500, 500)}, {"cur_nimg": 2000})
except OSError as error:
    print("OSError", error.errno)
print(sorted(file.name for file in run.iterdir()))
print(restore_state(read_state(run / "training-state-000001.pt"), {"G": torch.nn.Linear(10, 10)}))
"""
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert out[0].startswith("OSError")
    assert out[1:] == ["['training-state-000001.pt']", "{'cur_nimg': 1000}"]
