"""The README.md of an exported folder: a model card."""

from training.checkpoint import Snapshot

CARD = """---
library_name: stylegan2-icgan
pipeline_tag: {pipeline_tag}
{licence_line}tags:
- gan
- {system}
---

# {title}

A {system} generator{conditioned}, {resolution} x {resolution} pixels, {channels}.
Exported from `{made_with}` after {kimg:,.0f} thousand images.

## Use

```python
import stylegan2_icgan as icgan

G = icgan.load("PATH OR HUB ID OF THIS FOLDER")
images = G.sample({arguments}seeds=range(8))  # uint8 [8, {num_channels}, {resolution}, {resolution}]
```

| input | shape | what |
|---|---|---|
{inputs}

`exemplars.npz` holds {num_exemplars} stored conditions{with_features}.
`model.safetensors` and `config.json` hold no code.

## Training

{training}

## Licence

{licence}
"""

CONVERTED = """Converted from `{file}` (SHA-256 {sha256}). The weights keep the licence they were published
under; look it up before you use or pass them on."""


def card(snapshot: Snapshot, made_with: str) -> str:
    """Markdown with the front matter of the Hugging Face hub; names no path of the machine it was made on.

    Args:
        made_with: name of the snapshot.
    """
    shape, options = snapshot.recipe.shape, snapshot.recipe.training_options
    kinds = [what for what, width in (("instances", shape.h_dim), ("classes", shape.c_dim)) if width]
    inputs = ["| `seeds` | [N] whole numbers | noise, one seed an image |"]
    if shape.h_dim:
        inputs.append(f"| `h` | float32 [N, {shape.h_dim}], unit length | instance features |")
    if shape.c_dim:
        inputs.append(f"| `c` | [N] whole numbers below {shape.c_dim}, or one-hot [N, {shape.c_dim}] | classes |")
    arguments = ("h=G.exemplars.condition.h[:1], " if shape.h_dim else "") + ("c=0, " if shape.c_dim else "")
    converted = options.get("converted_from")
    extractor = snapshot.exemplars.extractor.get("name", "")
    return CARD.format(
        pipeline_tag="image-to-image" if shape.h_dim else "unconditional-image-generation",
        licence_line="license: other\n" if converted else "",
        system=snapshot.recipe.system,
        title=made_with.rpartition(".")[0] or made_with,
        conditioned=f" conditioned on {' and '.join(kinds)}" if kinds else "",
        resolution=shape.img_resolution,
        channels="grey" if shape.img_channels == 1 else "colour",
        made_with=made_with,
        kimg=snapshot.cur_nimg / 1000,
        arguments=arguments,
        num_channels=shape.img_channels,
        inputs="\n".join(inputs),
        num_exemplars=len(snapshot.exemplars),
        with_features=f", their features made by `{extractor}`" if extractor else "",
        training=_training(options),
        licence=CONVERTED.format(**converted) if converted else "Name the licence of the weights and of the data here.",
    )


def _training(options: dict[str, object]) -> str:
    """What is known of the training, in a sentence or two."""
    if "converted_from" in options:
        return "Trained elsewhere; see where it was published."
    data, dataset = options.get("data"), options.get("dataset")
    if not isinstance(data, dict) or not isinstance(dataset, dict):
        return "Not recorded."
    name = str(data.get("data", "")).replace("\\", "/").rpartition("/")[2]
    return f"Trained on {dataset.get('num_images', 0):,} images of `{name}` (`--cond={data.get('cond')}`)."
