"""Memory does not grow with the length of a run."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import invoke, pattern_images, write_zip

import train

SMALLEST = ["--cfg=wgan-tiny", "--g-net=mlp", "--d-net=mlp", "--mlp-width=8", "--z-dim=8", "--d-steps=1"]
SMALLEST += ["--critic-steps=1", "--batch=4", "--aug=fixed", "--p=0.2", "--augpipe=blit"]
REGULARISED = ["--cfg=tiny", "--z-dim=4", "--w-dim=4", "--map-layers=1", "--channel-base=32", "--channel-max=4"]
REGULARISED += ["--cond=instance", "--k=4", "--batch=16", "--aug=ada", "--r1-interval=1", "--pl-weight=2"]


def kib_a_step(folder: Path, *flags: str) -> float:
    """Slope of a straight line through the resident memory at the ticks of the second half of a run."""
    data = write_zip(folder / "patterns.zip", *pattern_images(40))
    fixed = ["--device=cpu", "--snap=20", "--minutes=10", f"--data={data}", f"--outdir={folder / 'runs'}"]
    result = invoke(train.main, *flags, *fixed)
    assert result.exit_code == 0, result.output
    (run,) = (folder / "runs").iterdir()
    batch = json.loads((run / "training_options.json").read_text())["loop"]["batch"]
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    steps = [line["Progress/kimg"]["mean"] * 1000 / batch for line in lines]
    memory = [line["Resources/host_memory_gb"]["mean"] * 2**20 for line in lines]
    half = len(lines) // 2
    return float(np.polyfit(steps[half:], memory[half:], 1)[0])


@pytest.mark.slow
def test_resident_memory_is_flat_over_two_thousand_steps(tmp_path: Path) -> None:
    assert kib_a_step(tmp_path, *SMALLEST, "--kimg=8", "--tick=0.2") < 1


@pytest.mark.slow
def test_regularisers_and_augmentation_leave_nothing_in_memory(tmp_path: Path) -> None:
    """320 steps, R1 in each; a gradient of 16 images of 8 x 8 pixels is 4 KiB, and far more with what made it."""
    assert kib_a_step(tmp_path, *REGULARISED, "--kimg=5.12", "--tick=0.256") < 3
