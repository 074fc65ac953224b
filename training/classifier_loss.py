"""Terms for a discriminator with a classifier beside its logit; D has a method `both` that gives the two.

AC-GAN: Odena et al., arXiv 1610.09585. ADC-GAN: Hou et al., arXiv 2107.10060. The logit has the hinge loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from torch_utils import training_stats
from training.condition import Condition
from training.loss import Generate, generated
from training.step import Step

ClassLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # logits [N, outputs * K], labels int64 [N] -> [N]


@dataclass(frozen=True)
class Classifier:
    """What the classifier is taught, and what the generator learns from it.

    Args:
        outputs: logits for each class.
        of_real, of_fake: losses of D; None: the classifier does not see these images.
        of_generator: loss of G.
    """

    outputs: int
    of_real: ClassLoss | None
    of_fake: ClassLoss | None
    of_generator: ClassLoss


def class_is(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """-log C(y | x) over K classes (L_C of arXiv 1610.09585)."""
    return F.cross_entropy(logits, label, reduction="none")


def class_is_real(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """-log C(y+ | x) over 2 K classes: real images of class y have number 2 y."""
    return F.cross_entropy(logits, 2 * label, reduction="none")


def class_is_fake(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """-log C(y- | G(z, y)) over 2 K classes: fakes of class y have number 2 y + 1."""
    return F.cross_entropy(logits, 2 * label + 1, reduction="none")


def fake_over_real(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """log C(y- | G(z, y)) - log C(y+ | G(z, y)): the softmax cancels, two logits remain."""
    fake, real = (logits.gather(1, (2 * label + offset)[:, None]).squeeze(1) for offset in (1, 0))
    return fake - real


# ac as the code of ADC-GAN compares itself with it: only real images teach the classifier, not fakes as well as in
# arXiv 1610.09585.
CLASSIFIERS = {
    "adc": Classifier(2, of_real=class_is_real, of_fake=class_is_fake, of_generator=fake_over_real),
    "ac": Classifier(1, of_real=class_is, of_fake=None, of_generator=class_is),
}


def _both(step: Step, images: torch.Tensor, cond: Condition) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """D's logits on what it is shown of the images, [N], those of the classes, [N, outputs * K], and labels, [N]."""
    logits, classes = step.D.both(step.augment(images), cond.c, cond.h)
    return logits.squeeze(1), classes, cond.c.argmax(dim=1)


class DClassifiedReal:
    """max(0, 1 - D(x)) + weight * the classifier's loss on real images."""

    def __init__(self, classifier: Classifier, weight: float) -> None:
        self.classifier, self.weight = classifier, weight

    def __call__(self, step: Step) -> torch.Tensor:
        logits, classes, label = _both(step, step.real, step.real_cond)
        step.observe(logits)
        loss = F.relu(1 - logits)
        training_stats.report("Loss/D/real", loss)
        training_stats.report("Loss/scores/real", logits)
        training_stats.report("Loss/signs/real", logits.sign())
        if self.classifier.of_real is not None:
            of_class = self.classifier.of_real(classes, label)
            training_stats.report("Loss/D/class_real", of_class)
            loss = loss + self.weight * of_class
        return loss


class DClassifiedFake:
    """max(0, 1 + D(G(z, y))) + weight * the classifier's loss on fakes."""

    def __init__(self, classifier: Classifier, weight: float, generate: Generate = generated) -> None:
        self.classifier, self.weight, self.generate = classifier, weight, generate

    def __call__(self, step: Step) -> torch.Tensor:
        with torch.no_grad():
            images = self.generate(step, step.z, step.gen_cond)
        logits, classes, label = _both(step, images, step.gen_cond)
        loss = F.relu(1 + logits)
        training_stats.report("Loss/D/fake", loss)
        if self.classifier.of_fake is not None:
            of_class = self.classifier.of_fake(classes, label)
            training_stats.report("Loss/D/class_fake", of_class)
            loss = loss + self.weight * of_class
        return loss


class GClassified:
    """-D(G(z, y)) + weight * what the classifier says of the fakes."""

    def __init__(self, classifier: Classifier, weight: float, generate: Generate = generated) -> None:
        self.classifier, self.weight, self.generate = classifier, weight, generate

    def __call__(self, step: Step) -> torch.Tensor:
        images = self.generate(step, step.z, step.gen_cond)
        logits, classes, label = _both(step, images, step.gen_cond)
        of_class = self.classifier.of_generator(classes, label)
        training_stats.report("Loss/G/loss", -logits)
        training_stats.report("Loss/G/class", of_class)
        training_stats.report("Loss/scores/fake", logits)
        training_stats.report("Loss/signs/fake", logits.sign())
        return -logits + self.weight * of_class
