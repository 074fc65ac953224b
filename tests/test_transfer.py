"""Starting from the weights of another model: what fits is taken over, what doesn't is named."""

from pathlib import Path

import pytest
import torch
from conftest import TINY_RUN, Refused, invoke, pattern_images, write_zip

import train
from training.checkpoint import load_snapshot
from training.run_folder import snapshots_in
from training.transfer import first_layers, take_over


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of an unconditional model."""
    folder = tmp_path_factory.mktemp("unconditional")
    data = write_zip(folder / "patterns.zip", *pattern_images(40))
    assert invoke(train.main, *TINY_RUN, f"--data={data}", "--kimg=0.1", f"--outdir={folder / 'runs'}").exit_code == 0
    (run,) = (folder / "runs").iterdir()
    return snapshots_in(run)[-1]


def test_what_fits_is_copied_and_the_rest_is_named() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    before = network[1].weight.clone()
    state = {"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2), "1.weight": torch.ones(5, 2), "7.x": torch.ones(1)}
    report = take_over("G", network, state)
    assert (report.loaded, report.mismatched) == (["0.weight", "0.bias"], ["1.weight"])
    assert (report.missing, report.unused) == (["1.bias"], ["7.x"])
    assert torch.equal(network[0].weight, torch.ones(2, 3))
    assert torch.equal(network[1].weight, before)
    assert report.lines()[0] == "G: 2 of 4 learned tensors loaded"


def test_constants_that_fit_are_taken_over_but_not_counted() -> None:
    network = torch.nn.BatchNorm1d(2)
    report = take_over("G", network, {"running_mean": torch.ones(2), "weight": torch.ones(5)})
    assert report.loaded == ["running_mean"]
    assert torch.equal(network.running_mean, torch.ones(2))
    assert report.lines()[0] == "G: 0 of 2 learned tensors loaded"


def test_an_instance_model_starts_with_the_synthesis_of_an_unconditional_one(
    unconditional: Path, patterns_zip: Path, tmp_path: Path
) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--cond=instance", "--k=4", f"--outdir={tmp_path / 'runs'}"]
    result = invoke(train.main, *flags, f"--init-from={unconditional}", "--kimg=0.008", "--g-lr=0", "--d-lr=0")
    assert result.exit_code == 0, result.output
    assert "G: other shapes, drawn afresh" in result.output
    assert "mapping.fc0.weight" in result.output
    assert "G: not in the file, drawn afresh: 2 (mapping.embed_feats." in result.output
    (run,) = (tmp_path / "runs").iterdir()
    ours, theirs = load_snapshot(snapshots_in(run)[-1]).networks, load_snapshot(unconditional).networks
    synthesis = [key for key in theirs["G_ema"] if key.startswith("synthesis.")]
    assert synthesis
    assert all(torch.equal(ours["G"][key], theirs["G_ema"][key]) for key in synthesis)
    assert torch.equal(ours["D"]["b8.conv0.weight"], theirs["D"]["b8.conv0.weight"])


def test_resuming_does_not_start_again(unconditional: Path, patterns_zip: Path, tmp_path: Path) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", f"--init-from={unconditional}", f"--outdir={tmp_path / 'runs'}"]
    assert invoke(train.main, *flags, "--kimg=0.064").exit_code == 0
    (run,) = (tmp_path / "runs").iterdir()
    trained = load_snapshot(snapshots_in(run)[-1]).networks["G"]
    result = invoke(train.main, f"--resume={run}", "--kimg=0.072")
    assert "tensors loaded" not in result.output
    after = load_snapshot(snapshots_in(run)[-1]).networks["G"]
    start = load_snapshot(unconditional).networks["G_ema"]
    key = "synthesis.b8.conv1.weight"
    assert (after[key] - trained[key]).abs().max() < (after[key] - start[key]).abs().max()


def test_frozen_layers_stay_and_the_others_learn(unconditional: Path, patterns_zip: Path, tmp_path: Path) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", f"--init-from={unconditional}", f"--outdir={tmp_path / 'runs'}"]
    assert invoke(train.main, *flags, "--kimg=0.032", "--freeze-d=2").exit_code == 0
    (run,) = (tmp_path / "runs").iterdir()
    theirs = load_snapshot(unconditional).networks["D"]
    for resumed in (False, True):
        if resumed:
            assert invoke(train.main, f"--resume={run}", "--kimg=0.064").exit_code == 0
        ours = load_snapshot(snapshots_in(run)[-1]).networks["D"]
        equal = {key for key, value in ours.items() if "weight" in key and torch.equal(value, theirs[key])}
        assert equal == {"b8.fromrgb.weight", "b8.conv0.weight"}


def test_first_layers_are_counted_from_the_image() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    assert first_layers(network, 1) == {"0.weight", "0.bias"}
    with pytest.raises(ValueError, match="--freeze-d=2: the discriminator has 2 layers; expected 1 to 1"):
        first_layers(network, 2)


def test_files_that_do_not_fit_are_refused(
    unconditional: Path, patterns_zip: Path, tmp_path: Path, refused: Refused
) -> None:
    data = f"--data={patterns_zip}"
    assert "--init-from=nowhere.pt does not exist" in refused(train.main, *TINY_RUN, data, "--init-from=nowhere.pt")
    line = refused(train.main, data, "--cfg=biggan-tiny", "--attention=0", f"--init-from={unconditional}")
    assert "resolution" in line or "nothing of its" in line
    assert not list(tmp_path.glob("runs/*"))


def test_a_model_of_another_width_is_refused(unconditional: Path, patterns_zip: Path, refused: Refused) -> None:
    """Its filters, noise and the bias of the last layer have the same shapes at every width."""
    wider = ["--channel-base=128", "--channel-max=12", f"--init-from={unconditional}"]
    line = refused(train.main, *TINY_RUN, *wider, f"--data={patterns_zip}", "-n")
    assert "nothing of its D fits this D; expected a snapshot of the same system and channels" in line
