"""Training in 16 bits: what computes in what, and the scale that keeps small gradients."""

import json
from pathlib import Path

import pytest
import torch
from conftest import Refused, invoke

import train
from training.mixed_precision import FIRST, LARGEST, PATIENCE, LossScale, Precision

BAD, GOOD = torch.tensor(1.0), torch.tensor(0.0)
FLAGS = ["--cfg=biggan-tiny", "--ch=2", "--attention=0", "--batch=8", "--tick=0.032", "--device=cpu", "--kimg=0.064"]


def test_scale_is_halved_after_a_bad_step_and_doubled_after_many_good_ones() -> None:
    scale = LossScale()
    scale.update(BAD)
    assert float(scale.value) == FIRST / 2
    for _ in range(PATIENCE - 1):
        scale.update(GOOD)
    assert float(scale.value) == FIRST / 2
    scale.update(GOOD)
    assert float(scale.value) == FIRST
    for _ in range(PATIENCE - 1):
        scale.update(GOOD)
    scale.update(BAD)  # the count begins again
    scale.update(GOOD)
    assert float(scale.value) == FIRST / 2
    for _ in range(100):
        scale.update(BAD)
    assert float(scale.value) == 1
    scale.value = torch.tensor(LARGEST)
    for _ in range(PATIENCE):
        scale.update(GOOD)
    assert float(scale.value) == LARGEST
    other = LossScale()
    other.load_state_dict(scale.state_dict())
    assert torch.equal(other.value, scale.value)


@pytest.mark.parametrize(("name", "dtype"), [("auto", None), ("fp32", None), ("bf16", torch.bfloat16)])
def test_autocast_computes_in(name: str, dtype: torch.dtype | None) -> None:
    x = torch.ones(2, 2)
    with Precision(name).autocast(torch.device("cpu")):
        assert (x @ x).dtype == (dtype or torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_biggan_trains_in_16_bits_and_resumes(digits: Path, tmp_path: Path, precision: str) -> None:
    flags = [*FLAGS, f"--data={digits}", f"--precision={precision}"]
    assert invoke(train.main, *flags, f"--outdir={tmp_path / 'whole'}").exit_code == 0
    assert invoke(train.main, *flags, "--kimg=0.032", f"--outdir={tmp_path / 'parts'}").exit_code == 0
    assert invoke(train.main, "--resume=latest", "--kimg=0.064", f"--outdir={tmp_path / 'parts'}").exit_code == 0
    whole, parts = (
        torch.load(max(tmp_path.glob(f"{name}/*/training-state-*.pt")), weights_only=True)["members"]
        for name in ("whole", "parts")
    )
    assert ("loss_scale" in whole) == (precision == "fp16")
    for name in ("G", "D", "G_ema"):
        assert all(torch.equal(parts[name][key], value) for key, value in whole[name].items())
        assert all(value.dtype != torch.bfloat16 for value in whole[name].values())
    lines = [json.loads(line) for line in next(tmp_path.glob("whole/*/stats.jsonl")).read_text().splitlines()]
    assert all(line["Gradients/bad_steps"]["mean"] < 0.3 for line in lines)  # fp16 looks for its scale


def test_fp32_is_a_word_for_precision(patterns_zip: Path, refused: Refused) -> None:
    data = f"--data={patterns_zip}"
    result = invoke(train.main, data, "--cfg=tiny", "--fp32", "-n")
    assert '"precision": "fp32"' in result.output
    assert '"num_fp16_res": 0' in result.output
    assert "is slow here" not in result.output
    slow = invoke(train.main, data, "--cfg=tiny", "--precision=fp16", "--device=cpu", "-n")
    assert slow.output.startswith("--precision=fp16 is slow here: this cpu computes faster with --fp32\n")
    assert "--num-fp16-res=2 contradicts --precision=fp32 (or --fp32)" in refused(
        train.main, data, "--cfg=tiny", "--fp32", "--num-fp16-res=2"
    )
    assert "--fp32 and --precision=bf16 both given" in refused(train.main, data, "--fp32", "--precision=bf16")


@pytest.fixture
def digits() -> Path:
    return Path(__file__).parents[1] / "datasets" / "digits.zip"
