"""ADC-GAN and AC-GAN: the labels of the classifier, what each network learns from it, and the second head."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Refused

import train
from stylegan2_icgan.systems.adc import ADC, ADCOptions
from training.augment import identity
from training.classifier_loss import CLASSIFIERS, DClassifiedFake, DClassifiedReal, GClassified
from training.condition import Condition
from training.ema import Ema
from training.networks.classifying import ClassifyingDiscriminator
from training.randomness import seed_everything
from training.step import Step
from training.system import DataShape, System

SMALL = ADCOptions(z_dim=6, ch=2, shared_dim=4, shared_dim_feat=4, attention="0", g_lr=2e-3, d_lr=2e-3, d_steps=1)


def small_system(h_dim: int = 0, resolution: int = 8, **changes: Any) -> System:
    options = dataclasses.replace(SMALL, **changes)
    ADC.check(options, resolution, 8)
    seed_everything(0)
    shape = DataShape(img_resolution=resolution, img_channels=1, c_dim=3, h_dim=h_dim)
    return ADC.build(options, {name: make(options, shape) for name, make in ADC.networks.items()})


def make_step(system: System, number: int = 0, rows: int = 8) -> Step:
    """Grey images, dark to bright by class, with noise."""
    G = system.networks["G"]
    seed_everything(1, number)
    label = torch.randint(3, (rows,))
    real = (label[:, None, None, None] - 1) * 0.8 + 0.1 * torch.randn(rows, 1, G.img_resolution, G.img_resolution)
    cond = Condition(torch.eye(3)[label], torch.randn(rows, 5)[:, : G.h_dim])
    return Step(
        system.networks, real.clamp(-1, 1), cond, torch.randn(rows, G.z_dim), cond[torch.randperm(rows)], identity
    )


class Given(torch.nn.Module):
    """Whose logit is the first number of an image, and whose classes are the others."""

    def both(self, img: torch.Tensor, c: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return img.flatten(1)[:, :1], img.flatten(1)[:, 1:]


def given_step(outputs: int, rows: int = 12) -> tuple[Step, torch.Tensor]:
    torch.manual_seed(0)
    label = torch.arange(rows) % 3
    cond = Condition(torch.eye(3)[label], torch.zeros(rows, 0))
    images = torch.randn(rows, 1, 1, 1 + 3 * outputs)
    return Step({"D": Given(), "G": torch.nn.Identity()}, images, cond, images, cond, identity), label


def as_is(step: Step, z: torch.Tensor, cond: Condition) -> torch.Tensor:
    return z


# Losses


def test_the_generator_of_adc_sees_a_difference_of_two_logits() -> None:
    step, label = given_step(outputs=2)
    logits, classes = step.D.both(step.z, label, label)
    rows = torch.arange(len(label))
    expected = classes[rows, 2 * label + 1] - classes[rows, 2 * label]
    torch.testing.assert_close(GClassified(CLASSIFIERS["adc"], 0.5, as_is)(step), -logits[:, 0] + 0.5 * expected)
    probabilities = classes.softmax(dim=1)  # and that is what the paper writes with logarithms
    torch.testing.assert_close(
        probabilities[rows, 2 * label + 1].log() - probabilities[rows, 2 * label].log(), expected
    )


def test_the_classifier_of_adc_tells_real_from_fake_of_each_class() -> None:
    step, label = given_step(outputs=2)
    logits, classes = step.D.both(step.z, label, label)
    log_probabilities = classes.log_softmax(dim=1)
    rows = torch.arange(len(label))
    for term, number, hinge in (
        (DClassifiedReal(CLASSIFIERS["adc"], 0.5), 2 * label, 1 - logits[:, 0]),
        (DClassifiedFake(CLASSIFIERS["adc"], 0.5, as_is), 2 * label + 1, 1 + logits[:, 0]),
    ):
        torch.testing.assert_close(term(step), hinge.clamp_min(0) - 0.5 * log_probabilities[rows, number])


def test_ac_learns_classes_from_real_images_alone() -> None:
    step, label = given_step(outputs=1)
    logits, classes = step.D.both(step.z, label, label)
    of_class = -classes.log_softmax(dim=1)[torch.arange(len(label)), label]
    torch.testing.assert_close(
        DClassifiedReal(CLASSIFIERS["ac"], 2.0)(step), (1 - logits[:, 0]).clamp_min(0) + 2 * of_class
    )
    torch.testing.assert_close(DClassifiedFake(CLASSIFIERS["ac"], 2.0, as_is)(step), (1 + logits[:, 0]).clamp_min(0))
    torch.testing.assert_close(GClassified(CLASSIFIERS["ac"], 2.0, as_is)(step), -logits[:, 0] + 2 * of_class)


# Networks


@pytest.mark.parametrize(("h_dim", "deep"), [(0, False), (5, True)])
def test_the_second_head_classifies_and_the_first_does_not_know_the_class(h_dim: int, deep: bool) -> None:
    D = ClassifyingDiscriminator(3, 2, img_resolution=8, img_channels=1, h_dim=h_dim, ch=4, deep=deep).eval()
    img, c, h = torch.randn(2, 1, 8, 8), torch.eye(3)[:2], torch.randn(2, h_dim)
    logits, classes = D.both(img, c, h)
    assert (logits.shape, classes.shape) == ((2, 1), (2, 6))
    torch.testing.assert_close(D(img, c, h), logits)
    torch.testing.assert_close(D(img, c.flip(0), h), logits)
    assert torch.equal(D(img, c, h.flip(0)), logits) == (h_dim == 0)
    with pytest.raises(ValueError, match="c: this network takes class labels"):
        D.both(img)


@pytest.mark.parametrize("classifier", ["adc", "ac"])
@pytest.mark.parametrize("h_dim", [0, 5])
def test_every_parameter_learns(h_dim: int, classifier: str) -> None:
    system = small_system(h_dim, classifier=classifier)
    seen: dict[str, set[str]] = {name: set() for name in system.networks}
    for number in range(4):  # at first what real and fake images ask of the bias of the logit cancels
        for phase in system.phases:
            system.run(phase, [make_step(system, number)])
            network = system.networks[phase.trains]
            seen[phase.trains] |= {key for key, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    for name, network in system.networks.items():
        assert {key for key, _ in network.named_parameters()} == seen[name], name


@pytest.mark.parametrize("classifier", ["adc", pytest.param("ac", marks=pytest.mark.slow)])
def test_it_learns_the_brightness_of_each_class(classifier: str) -> None:
    """Classes at -0.8, 0 and 0.8 are told apart by the averaged generator, though the logit knows no class."""
    system = small_system(ch=4, classifier=classifier)
    ema = Ema(system.networks["G"], halflife_kimg=0.1, rampup=None, average_buffers=True)
    for number in range(70):
        for phase in system.phases:
            system.run(phase, [make_step(system, number)])
        ema.update(system.networks["G"], 8 * number, 8)
    z, c = torch.randn(30, system.networks["G"].z_dim), torch.eye(3).repeat_interleave(10, dim=0)
    with torch.no_grad():
        dark, grey, bright = ema.average.eval()(z, c).mean(dim=[1, 2, 3]).unflatten(0, (3, 10)).mean(dim=1).tolist()
    assert dark < -0.4 < grey < 0.4 < bright


def test_what_can_not_work_is_refused(refused: Refused, patterns_zip: Path, tmp_path: Path) -> None:
    flags = ["--cfg=adc-tiny", f"--data={patterns_zip}", f"--outdir={tmp_path}", "--attention=0"]
    assert "--cond=none: adc has no use for that; expected --cond=class or instance+class" in refused(
        train.main, *flags
    )
    assert "'tac' is not one of adc, ac" in refused(train.main, *flags, "--classifier=tac")
    assert "--g-class-weight=-1.0: expected 0 or more" in refused(
        train.main, *flags, "--cond=class", "--g-class-weight=-1"
    )
