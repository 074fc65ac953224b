"""Does conditioning on instances pay? Ways of conditioning on real images, equal budgets and seeds.

    python -m benchmarks.quality --set=digits16 --rows=conditioning --seeds=0-2
    python -m benchmarks.quality --set=emoji32 --data=emoji32.zip --rows=all --seeds=0-2

A row is a way to call train.py; a run of it is made once, evaluated and kept in the results file, so that a table grows
over any number of calls. Features are those of a small classifier trained on four fifths of the real images (its
accuracy on the other fifth is printed). Samples are conditioned on instances of the data set, uniformly drawn: on their
features, their own classes, or both. Agreement is the share of samples whose class, by that classifier, is the
instance's; diversity the mean distance of two samples of one condition over that of two real images.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.judges import Classifier, train_classifier
from metrics.feature_stats import FeatureStats
from metrics.frechet import frechet_distance
from metrics.precision_recall import density_coverage, precision_recall
from stylegan2_icgan.models import load_model
from stylegan2_icgan.store import default_folder, open_store
from torch_utils.command_line import Command, NearestChoice, Ranges, UserError
from torch_utils.files import atomic_write
from training.condition import Condition
from training.dataset import ImageFolderDataset
from training.loading import fake_draws
from training.run_folder import snapshots_in
from training.sampling import sample_images

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("frechet", "precision", "recall", "density", "coverage", "agreement", "diversity")
MOST = 4000  # samples, and real images, that a run is judged by


@dataclass(frozen=True)
class ImageSet:
    """Real images, and how long a run on them is.

    Args:
        data: in the repository; None: named by --data.
        flags: of every train.py.
    """

    data: Path | None
    flags: tuple[str, ...]


SETS = {
    "digits16": ImageSet(ROOT / "datasets" / "digits.zip", ()),
    "emoji32": ImageSet(None, ("--kimg=24", "--tick=4", "--snap=6", "--channel-base=1024")),
    "emoji64": ImageSet(None, ("--kimg=1000", "--tick=20", "--snap=10", "--cfg=auto", "--aug=noaug")),
}
STYLEGAN2 = "--cfg=tiny"
CONDITIONING = {
    "none": (STYLEGAN2, "--cond=none"),
    "class": (STYLEGAN2, "--cond=class"),
    "instance": (STYLEGAN2, "--cond=instance"),
    "instance+class": (STYLEGAN2, "--cond=instance+class"),
}
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "conditioning": CONDITIONING,
    "flips": {
        "none, flips": (*CONDITIONING["none"], "--mirror"),
        "instance, flips": (*CONDITIONING["instance"], "--mirror", "--mirror-instances"),
    },
    "ada": {
        "none, ada": (*CONDITIONING["none"], "--aug=ada", "--ada-kimg=20"),
        "instance, ada": (*CONDITIONING["instance"], "--aug=ada", "--ada-kimg=20"),
    },
    "neighbours": {f"instance, k = {k}": (*CONDITIONING["instance"], f"--k={k}") for k in (5, 20, 50)},
    "biggan": {f"biggan, {cond}": ("--cfg=biggan-tiny", f"--cond={cond}") for cond in CONDITIONING},
}
ROWS = {name: row for group in GROUPS.values() for name, row in group.items()}


def train_gan(data: Path, flags: tuple[str, ...], outdir: Path) -> Path:
    """Run train.py to its end; the last snapshot."""
    command = [sys.executable, str(ROOT / "train.py"), f"--data={data}", *flags, f"--outdir={outdir}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (run,) = outdir.iterdir()
    return snapshots_in(run)[-1]


def evaluate(snapshot: Path, dataset: ImageFolderDataset, judge: Classifier) -> dict[str, float | None]:
    """The columns for as many samples as there are real images, at most `MOST`."""
    assert dataset.class_ids is not None
    model = load_model(snapshot, torch.device("cpu"))
    shape, count = model.recipe.shape, min(len(dataset), MOST)
    i = fake_draws(len(dataset), seed=1234, stream=0, start=0, count=count).index
    c, h = dataset.labels(i)[:, : shape.c_dim], torch.zeros(count, 0)
    if shape.h_dim:
        h = torch.from_numpy(np.array(open_store(default_folder(dataset), dataset).features[i], dtype=np.float32))
    condition = Condition(c, h)

    def samples(seed: int) -> torch.Tensor:
        z = np.random.default_rng(seed).standard_normal((count, model.generator.z_dim))
        return judge_features(sample_images(model.generator, torch.from_numpy(z).float(), condition))

    def judge_features(images: torch.Tensor) -> torch.Tensor:
        return judge(images)[0]

    real = judge_features(dataset.images(i if len(dataset) > MOST else range(len(dataset))))
    fake, other = samples(5), samples(6)
    precision, recall = precision_recall(real, fake)
    density, coverage = density_coverage(real, fake)
    same = (judge.head(fake).argmax(dim=1) == torch.from_numpy(dataset.class_ids[i])).float().mean()
    among_reals = (real - real.roll(1, dims=0)).norm(dim=1).mean()
    conditional = shape.c_dim + shape.h_dim > 0
    return {
        "frechet": frechet_distance(FeatureStats().append(real), FeatureStats().append(fake)),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
        "agreement": float(same) if conditional else None,
        "diversity": float((fake - other).norm(dim=1).mean() / among_reals),
    }


def table(runs: dict[str, dict[str, float | None]]) -> str:
    """Markdown: mean and, over several seeds, deviation."""
    lines = [f"| conditioned on | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in ROWS:
        rows = [row for key, row in runs.items() if key.rpartition("/")[0] == name]
        cells = []
        for column in COLUMNS:
            values = [value for row in rows if (value := row[column]) is not None]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.2f}{spread}" if values else "-")
        if rows:
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command(cls=Command, help=__doc__)
@click.option("--set", "name", type=NearestChoice(list(SETS)), default="digits16", show_default=True)
@click.option("--data", type=Path, help="Labelled images of the set.  [default: in the repository, if there]")
@click.option("--rows", default="conditioning", show_default=True, help=f"Rows or {', '.join(GROUPS)}; or all.")
@click.option("--seeds", type=Ranges(), default="0-2", show_default=True, help="Seeds of the runs.")
@click.option("--minutes", type=float, help="Begin no run after this long.", metavar="MIN")
@click.option("--device", default="cpu", show_default=True, help="Where to train.")
@click.option("--out", type=Path, help="Results.  [default: benchmarks/results/quality-SET.json]")
@click.option("--flags", default="", help="More flags for every train.py, e.g. '--kimg=8'.")
def main(
    name: str,
    data: Path | None,
    rows: str,
    seeds: list[int],
    minutes: float | None,
    device: str,
    out: Path | None,
    flags: str,
) -> None:
    torch.set_num_threads(1)
    data = data or SETS[name].data
    if data is None:
        raise UserError(f"--data is missing; make --set={name} with: python dataset_tool.py convert --source=FONT.ttf")
    chosen = rows_named(rows)
    dataset = ImageFolderDataset(data, use_labels=True)
    dataset.decode_into_memory()
    judge, accuracy = train_classifier(dataset)
    out = out or ROOT / "benchmarks" / "results" / f"quality-{name}.json"
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"runs": {}}
    if results.get("flags", flags) != flags or results.get("data", dataset.fingerprint()) != dataset.fingerprint():
        raise UserError(f"--out={out} holds runs with other --flags or --data; name another file")
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
    results |= {
        "classifier_accuracy": accuracy,
        "flags": flags,
        "data": dataset.fingerprint(),
        "torch": torch.__version__,
        "machine": machine,
    }
    click.echo(f"classifier: {accuracy:.3f} of held-out real images right")
    start = time.monotonic()
    for seed in seeds:
        for row in chosen:
            key = f"{row}/{seed}"
            if key in results["runs"] or (minutes is not None and time.monotonic() - start > minutes * 60):
                continue
            words = (*ROWS[row], *SETS[name].flags, *flags.split(), f"--seed={seed}", f"--device={device}")
            with tempfile.TemporaryDirectory() as folder:
                results["runs"][key] = evaluate(train_gan(data.resolve(), words, Path(folder)), dataset, judge)
            click.echo(f"{key}: {results['runs'][key]}")
            out.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(out) as file:
                file.write((json.dumps(results, indent=2) + "\n").encode())
    click.echo(table(results["runs"]))


def rows_named(words: str) -> list[str]:
    """'conditioning; instance, ada' -> the rows of a group, and a row.

    Raises:
        UserError: no such row or group.
    """
    if words == "all":
        return list(ROWS)
    found: list[str] = []
    for word in (word.strip() for word in words.split(";")):
        if word in GROUPS:
            found += GROUPS[word]
        elif word in ROWS:
            found.append(word)
        else:
            raise UserError(f"--rows={word!r} is unknown; there are {', '.join(GROUPS)} and the rows {'; '.join(ROWS)}")
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    sys.exit(main())
