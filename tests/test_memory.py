"""Memory does not grow with the length of a run."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import invoke, pattern_images, write_zip

import train

SMALLEST = ["--cfg=wgan-tiny", "--g-net=mlp", "--d-net=mlp", "--mlp-width=8", "--z-dim=8", "--d-steps=1"]


def mib_a_step(run: Path) -> float:
    """Slope of a straight line through the resident memory at the ticks of the second half of a run."""
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    steps = [line["Progress/kimg"]["mean"] * 1000 / 4 for line in lines]
    memory = [line["Resources/host_memory_gb"]["mean"] * 1024 for line in lines]
    half = len(lines) // 2
    return float(np.polyfit(steps[half:], memory[half:], 1)[0])


@pytest.mark.slow
def test_resident_memory_is_flat_over_two_thousand_steps(tmp_path: Path) -> None:
    data = write_zip(tmp_path / "patterns.zip", *pattern_images(40))
    flags = [*SMALLEST, "--critic-steps=1", "--batch=4", "--device=cpu", "--aug=fixed", "--p=0.2"]
    flags += ["--augpipe=blit"]
    schedule = ["--kimg=8", "--tick=0.2", "--snap=20", "--minutes=10"]
    result = invoke(train.main, *flags, *schedule, f"--data={data}", f"--outdir={tmp_path / 'runs'}")
    assert result.exit_code == 0, result.output
    (run,) = (tmp_path / "runs").iterdir()
    assert mib_a_step(run) < 1 / 1024  # one KiB
