"""Does conditioning on instances pay? Four ways of conditioning, equal budget and seeds, on real digits.

    python benchmarks/digits.py --seeds=0-2 --out=benchmarks/results/digits.json

Every row is a run of train.py; finished runs are in the results file and are not repeated. Features are those of a
small classifier trained on four fifths of the real digits (its accuracy on the other fifth is printed); distances are
measured against all real digits. Samples are conditioned on instances of the data set, uniformly drawn: on their
features, their own classes, or both; agreement is the share of samples whose class (by that classifier) is the
instance's.
"""

import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from metrics.feature_stats import FeatureStats
from metrics.frechet import frechet_distance
from metrics.precision_recall import precision_recall
from stylegan2_icgan.models import load_model
from stylegan2_icgan.store import default_folder, open_store
from torch_utils.command_line import Command, Ranges, UserError
from torch_utils.files import atomic_write
from training.condition import Condition
from training.dataset import ImageFolderDataset
from training.loading import fake_draws
from training.randomness import permutation, seed_everything
from training.run_folder import snapshots_in
from training.sampling import from_uint8, sample_images

ROOT = Path(__file__).resolve().parents[1]
CONDS = ["none", "class", "instance", "instance+class"]
COLUMNS = ("frechet", "precision", "recall", "agreement")


class Classifier(torch.nn.Module):
    """Three convolutions; the features are the 64 activations before the last layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = [1, 32, 64, 64]
        layers: list[torch.nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [torch.nn.Conv2d(width_in, width_out, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
        self.trunk = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(256, 64), torch.nn.ReLU())
        self.head = torch.nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 [N, 1, 16, 16] -> features [N, 64], logits [N, num_classes]."""
        features = self.trunk(from_uint8(images))
        return features, self.head(features)


def train_classifier(dataset: ImageFolderDataset, epochs: int = 30) -> tuple[Classifier, float]:
    """The classifier, in eval mode, and its accuracy on the fifth it never saw."""
    assert dataset.class_ids is not None
    seed_everything(0)
    order = permutation(len(dataset), 7)
    held_out, seen = np.split(order, [len(order) // 5])
    images, labels = dataset.images(range(len(dataset))), torch.from_numpy(dataset.class_ids)
    network = Classifier(dataset.num_classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.from_numpy(seen)[torch.randperm(len(seen))].split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images[batch])[1], labels[batch]).backward()
            optimizer.step()
        schedule.step()
    network.eval().requires_grad_(False)
    predicted = network(images[held_out])[1].argmax(dim=1)
    return network, float((predicted == labels[held_out]).float().mean())


def train_gan(data: Path, cond: str, seed: int, flags: list[str], outdir: Path) -> Path:
    """Run train.py to its end; the last snapshot."""
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        f"--data={data}",
        f"--cond={cond}",
        "--cfg=tiny",
        f"--seed={seed}",
    ]
    subprocess.run([*command, f"--outdir={outdir}", "--device=cpu", *flags], check=True, stdout=subprocess.DEVNULL)
    (run,) = outdir.iterdir()
    return snapshots_in(run)[-1]


def evaluate(snapshot: Path, cond: str, dataset: ImageFolderDataset, classifier: Classifier) -> dict[str, float | None]:
    """Frechet distance, precision, recall (k = 3) of as many samples as there are real digits, and label agreement."""
    assert dataset.class_ids is not None
    model = load_model(snapshot, torch.device("cpu"))
    i = fake_draws(len(dataset), seed=1234, stream=0, start=0, count=len(dataset)).index
    c, h = dataset.labels(i), torch.zeros(len(i), 0)
    if "instance" in cond:
        h = torch.from_numpy(np.array(open_store(default_folder(dataset), dataset).features[i]))
    condition = Condition(c if "class" in cond else c[:, :0], h)
    z = torch.from_numpy(np.random.default_rng(5).standard_normal((len(dataset), model.generator.z_dim))).float()
    fakes = sample_images(model.generator, z, condition)

    real, _ = classifier(dataset.images(range(len(dataset))))
    fake, logits = classifier(fakes)
    precision, recall = precision_recall(real, fake)
    same = (logits.argmax(dim=1) == torch.from_numpy(dataset.class_ids[i])).float().mean()
    agreement = None if cond == "none" else float(same)
    distance = frechet_distance(FeatureStats().append(real), FeatureStats().append(fake))
    return {"frechet": distance, "precision": precision, "recall": recall, "agreement": agreement}


def table(results: dict[str, Any]) -> str:
    """Markdown: mean and, over several seeds, deviation."""
    lines = ["| conditioned on | Frechet distance | precision | recall | class agreement |", "|---|---|---|---|---|"]
    for cond in CONDS:
        rows = [row for key, row in results["runs"].items() if key.split("/")[0] == cond]
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in rows if row[column] is not None]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.2f}{spread}" if values else "-")
        if rows:
            lines.append(f"| {cond} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command(cls=Command, help=__doc__)
@click.option("--data", type=Path, default=ROOT / "datasets" / "digits.zip", help="Labelled 16x16 digits.")
@click.option("--seeds", type=Ranges(), default="0-2", show_default=True, help="Seeds of the runs.")
@click.option("--out", type=Path, default=Path("benchmarks/results/digits.json"), show_default=True, help="Results.")
@click.option("--flags", default="", help="More flags for every train.py, e.g. '--kimg=8'.")
def main(data: Path, seeds: list[int], out: Path, flags: str) -> None:
    torch.set_num_threads(1)
    dataset = ImageFolderDataset(data, use_labels=True)
    dataset.decode_into_memory()
    classifier, accuracy = train_classifier(dataset)
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"runs": {}}
    if results.get("flags", flags) != flags:
        raise UserError(f"--out={out} holds runs with --flags={results['flags']!r}; name another file for {flags!r}")
    results |= {
        "classifier_accuracy": accuracy,
        "flags": flags,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    click.echo(f"classifier: {accuracy:.3f} of held-out real digits right")
    for seed in seeds:
        for cond in CONDS:
            key = f"{cond}/{seed}"
            if key in results["runs"]:
                continue
            with tempfile.TemporaryDirectory() as folder:
                snapshot = train_gan(data.resolve(), cond, seed, flags.split(), Path(folder))
                results["runs"][key] = evaluate(snapshot, cond, dataset, classifier)
            click.echo(f"{key}: {results['runs'][key]}")
            out.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(out) as file:
                file.write((json.dumps(results, indent=2) + "\n").encode())
    click.echo(table(results))


if __name__ == "__main__":
    sys.exit(main())
