"""BigGAN through the same commands as every other system: train, go on, generate."""

from pathlib import Path

import pytest
import torch
from conftest import Refused, invoke

import generate
import train
from stylegan2_icgan.models import load_model
from training.checkpoint import read_state

RUN = ["--cfg=biggan-tiny", "--z-dim=8", "--ch=2", "--shared-dim=4", "--shared-dim-feat=4", "--attention=0"]
RUN += ["--batch=8", "--tick=0.032", "--snap=1", "--device=cpu"]


@pytest.mark.parametrize("cond", ["none", "class", "instance", "instance+class"])
def test_trains_resumes_to_the_same_tensors_and_generates(cond: str, patterns_zip: Path, tmp_path: Path) -> None:
    flags = [*RUN, f"--data={patterns_zip}", f"--cond={cond}", *(["--k=5"] if "instance" in cond else [])]
    assert invoke(train.main, *flags, "--kimg=0.064", f"--outdir={tmp_path / 'whole'}").exit_code == 0
    assert invoke(train.main, *flags, "--kimg=0.032", f"--outdir={tmp_path / 'parts'}").exit_code == 0
    resumed = invoke(train.main, "--resume=latest", "--kimg=0.064", f"--outdir={tmp_path / 'parts'}")
    assert resumed.exit_code == 0, resumed.output
    ours, theirs = (
        read_state(max(tmp_path.glob(f"{name}/*/training-state-*.pt")))["members"] for name in ("whole", "parts")
    )
    for member in ("G", "D", "G_ema"):
        assert all(torch.equal(ours[member][key], theirs[member][key]) for key in ours[member]), member

    snapshot = max(tmp_path.glob("whole/*/network-snapshot-*.pt"))
    G = load_model(snapshot, torch.device("cpu")).generator
    assert (G.z_dim, G.num_ws) == (8, 0)
    result = invoke(
        generate.main, f"--network={snapshot}", "--seeds=0,1", "--trunc=0.7", f"--outdir={tmp_path / 'out'}"
    )
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out").glob("*seed*.png"))) == 2 * {"none": 1, "class": 4}.get(cond, 8)


def test_what_cannot_work_is_refused(refused: Refused, patterns_zip: Path, tmp_path: Path) -> None:
    flags = ["--cfg=biggan-tiny", f"--data={patterns_zip}", f"--outdir={tmp_path}"]
    assert "--attention=64" in refused(train.main, *flags, "--attention=64")
    assert "--attention=: expected resolutions" in refused(train.main, *flags, "--attention=")
    assert "or use --cfg=biggan or biggan-tiny" in refused(train.main, *flags, "--cfg=icgan-biggan-64")
    assert "--map-layers is no option of biggan" in refused(train.main, *flags, "--map-layers=2")
    assert "--ch is no option of stylegan2" in refused(train.main, *flags, "--ch=2", "--cfg=tiny")
