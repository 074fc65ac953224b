"""A small archive of every format that dataset_tool.py reads, made by the format's own means."""

import gzip
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

BROKEN = b"I am not an image"


def picture(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(seed: int, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, kind, **options)
    return buffer.getvalue()


def write_images(root: Path, names: list[str], broken: str = "", width: int = 16, height: int = 16) -> None:
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == broken:
            path.write_bytes(BROKEN)
        else:
            picture(seed, width, height).save(path)


@dataclass(frozen=True)
class Sample:
    """What is built, and what must come out.

    build(root, broken): writes the archive into the empty folder `root`, with one unreadable image when `broken`, and
    returns the source.
    """

    build: Callable[[Path, bool], Path]
    sources: list[str]  # names in the source, in order
    labels: list[int] | None
    class_names: list[str] | None = None
    refused: str = ""  # what a broken sample refuses; one of `sources`, or what holds them
    options: list[str] = field(default_factory=list)
    is_recognised: bool = True  # without --format


# -- Folders of images


def build_folder(root: Path, broken: bool) -> Path:
    write_images(root, FOLDER, FOLDER[1] if broken else "")
    return root


FOLDER = ["cat/0.png", "cat/1.png", "dog/young/2.png", "emu/3.png"]


def build_imagenet(root: Path, broken: bool) -> Path:
    write_images(root, [*IMAGENET, "val/n02000000/9.png"], IMAGENET[1] if broken else "")
    (root / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\nn02000000 bird\nn03000000 chain saw\n")
    return root


IMAGENET = ["train/n01440764/0.png", "train/n01440764/1.png", "train/n02000000/2.png", "train/n03000000/3.png"]


def build_imagenet_lt(root: Path, broken: bool) -> Path:
    build_imagenet(root, broken)
    (root / "ImageNet_LT_train.txt").write_text("".join(f"{IMAGENET[i]} {[0, 0, 1, 2][i]}\n" for i in (0, 1, 3)))
    return root


def build_cityscapes(root: Path, broken: bool) -> Path:
    write_images(root / "leftImg8bit" / "train", CITIES, CITIES[1] if broken else "", width=32)
    return root


CITIES = ["aachen/aachen_000000_000019_leftImg8bit.png", "bremen/b_0.png", "bremen/b_1.png"]


def build_metfaces(root: Path, broken: bool) -> Path:
    write_images(root, FACES, FACES[1] if broken else "")
    entries = [
        {"obj_id": "11713", "image_path": name, "title": f"Portrait {i}", "face_idx": 0, "face_spec": {"shrink": 2}}
        for i, name in enumerate(FACES)
    ]
    (root / "metfaces.json").write_text(json.dumps(entries))
    return root


FACES = ["images/11713-00.png", "images/12345-00.png", "images/12345-01.png"]


def build_pacs(root: Path, broken: bool) -> Path:
    write_images(root / "pacs", PACS, PACS[1] if broken else "")
    return root


PACS = ["art_painting/dog/0.png", "art_painting/horse/1.png", "photo/dog/2.png", "sketch/horse/3.png"]


def build_sketches(root: Path, broken: bool) -> Path:
    names = [f"256x256/{name}" for name in SKETCHES]
    write_images(root, names, names[1] if broken else "")
    return root


SKETCHES = [
    "photo/tx_000000000000/airplane/0.png",
    "photo/tx_000000000000/zebra/1.png",
    "sketch/tx_000100000000/airplane/2.png",
]


# -- COCO


def coco_json(images: dict[int, list[tuple]], categories: dict[int, str], size: tuple[int, int] = (16, 16)) -> dict:
    """images: image id -> (category, width, height[, is crowd]) of its objects."""
    annotations = [
        {
            "id": 100 * image + i,
            "image_id": image,
            "category_id": entry[0],
            "bbox": [0, 0, *entry[1:3]],
            "segmentation": [[0, 0, 1, 1]],
            "iscrowd": int(len(entry) > 3),
        }
        for image, entries in images.items()
        for i, entry in enumerate(entries)
    ]
    width, height = size
    listed = [{"id": image, "file_name": f"{image:012d}.png", "width": width, "height": height} for image in images]
    named = [{"id": key, "name": name, "supercategory": "x"} for key, name in categories.items()]
    return {"info": {}, "images": listed, "annotations": annotations, "categories": named}


def write_coco(root: Path, split: str, things: dict, stuff: dict | None = None, broken: int = 0) -> None:
    names = {image: f"{split}2017/{image:012d}.png" for image in things}
    write_images(root, list(names.values()), names.get(broken, ""))
    (root / "annotations").mkdir(exist_ok=True)
    for kind, content, categories in (
        ("instances", things, {1: "person", 18: "dog"}),
        ("stuff", stuff, {105: "clouds", 183: "other"}),
    ):
        if content is not None:
            path = root / "annotations" / f"{kind}_{split}2017.json"
            path.write_text(json.dumps(coco_json(content, categories)))


def build_coco(root: Path, broken: bool) -> Path:
    write_coco(root, "train", {9: [(1, 8, 8)], 25: [(18, 8, 8)], 30: []}, broken=25 if broken else 0)
    return root


# -- Archives


def build_lsun(root: Path, broken: bool) -> Path:
    import lmdb

    for category, keys in {"bedroom": ["00a", "00b", "00c"], "tower": ["00d"]}.items():
        environment = lmdb.open(str(root / f"{category}_train_lmdb"), map_size=1 << 20)
        with environment.begin(write=True) as transaction:
            for seed, key in enumerate(keys):
                content = BROKEN if broken and key == "00b" else encoded(seed, "WEBP", lossless=True)
                transaction.put(key.encode(), content)
        environment.close()
    return root


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, which is how the published batches are pickled."""

    def save_string(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch = pickle._Pickler.dispatch | {bytes: save_string}


def python2_pickle(content: object) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def cifar_batch(labels: dict[str, list[int]], seed: int = 0) -> bytes:
    count = len(next(iter(labels.values())))
    data = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    content = {b"data": data, b"filenames": [f"tabby_s_{seed}{i}.png".encode() for i in range(count)]}
    return python2_pickle(content | {key.encode(): value for key, value in labels.items()})


def write_cifar(path: Path, folder: str, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def build_cifar(root: Path, broken: bool) -> Path:
    files = {
        "batches.meta": python2_pickle({b"label_names": [b"airplane", b"automobile", b"bird"]}),
        "data_batch_1": cifar_batch({"labels": [2, 0]}, 1),
        "data_batch_2": cifar_batch({"labels": [1, 2]}, 2),
        "test_batch": cifar_batch({"labels": [0]}, 3),
    }
    for i in (3, 4, 5):
        files[f"data_batch_{i}"] = cifar_batch({"labels": [0]}, i + 10)
    if broken:
        files["data_batch_2"] = files["data_batch_2"][:500]
    return write_cifar(root / "cifar-10-python.tar.gz", "cifar-10-batches-py", files)


CIFAR = ["data_batch_1/00000_tabby_s_10.png", "data_batch_1/00001_tabby_s_11.png"]
CIFAR += ["data_batch_2/00000_tabby_s_20.png", "data_batch_2/00001_tabby_s_21.png"]
CIFAR += [f"data_batch_{i}/00000_tabby_s_{i + 10}0.png" for i in (3, 4, 5)]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def build_mnist(root: Path, broken: bool) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (4, 16, 16), dtype=np.uint8)
    images = idx(values)[: -10 if broken else None]
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (root / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([3, 0, 3, 1], dtype=np.uint8))))
    return root


def write_parquet(path: Path, rows: dict[str, list], names: list[str] | None = None, group: int = 2) -> Path:
    """As Hugging Face's `datasets` writes it: struct{bytes, path}, and the class names in the schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(rows)
    if names is not None:
        info = {"features": {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": info})})
    pq.write_table(table, path, row_group_size=group)
    return path


def build_parquet(root: Path, broken: bool) -> Path:
    for part in range(2):
        images = [{"bytes": encoded(10 * part + i, "JPEG"), "path": f"{i}.jpg"} for i in range(3)]
        if broken and part == 0:
            images[1] = {"bytes": BROKEN, "path": "1.jpg"}
        rows = {"image": images, "label": [2, 0, part], "caption": ["a", None, "c"]}
        write_parquet(root / "data" / f"train-{part:05d}-of-00002.parquet", rows, ["ant", "bee", "cow"])
    return root


PARQUET = [f"data/train-{part:05d}-of-00002/{row:07d}" for part in range(2) for row in range(3)]


# -- Fonts

EMOJI_LIST = """\
# group: Smileys & Emotion
# subgroup: face-smiling
1F600                  ; fully-qualified     # x E1.0 grinning face
263A FE0F              ; fully-qualified     # x E0.6 smiling face
263A                   ; unqualified         # x E0.6 smiling face
# group: People & Body
# subgroup: hand-fingers-closed
1F44D                  ; fully-qualified     # x E0.6 thumbs up
1F44D 1F3FD            ; fully-qualified     # x E1.0 thumbs up: medium skin tone
"""
MORE_EMOJI = """\
# subgroup: hard-ones
1F468 200D 1F469       ; fully-qualified     # x E2.0 two that are not joined
1F6FC                  ; fully-qualified     # x E13.0 roller skate
1F3F4 E0067 E007F      ; fully-qualified     # x E5.0 flag that is not spelt
"""


def write_font(path: Path) -> Path:
    """Boxes of various sizes for a few emoji; thumbs up and skin tone are joined."""
    from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    characters = {
        **{0x1F600: "grin", 0x263A: "smile", 0x1F44D: "thumb", 0x1F3FD: "tone", 0x1F468: "man", 0x1F469: "woman"},
        **{0x1F3F4: "flag", 0xE0067: "tagG", 0xE007F: "tagEnd", 0xFE0F: "style", 0x200D: "joiner"},
    }
    invisible = {"tagG", "tagEnd", "style", "joiner"}
    glyphs = [".notdef", *characters.values(), "thumb_tone"]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap(characters)
    outlines, left_bearings = {}, {}
    for i, glyph in enumerate(glyphs):
        pen = TTGlyphPen(None)
        size = 300 + 50 * i
        left_bearings[glyph] = 0 if glyph in invisible else 500 - size // 2
        if glyph not in invisible:
            left, right = left_bearings[glyph], 500 + size // 2
            pen.moveTo((left, 0))
            for point in ((left, size), (right, size), (right, 0)):
                pen.lineTo(point)
            pen.closePath()
        outlines[glyph] = pen.glyph()
    builder.setupGlyf(outlines)
    builder.setupHorizontalMetrics(
        {glyph: (0 if glyph in invisible else 1000, x) for glyph, x in left_bearings.items()}
    )
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    license_text = "This Font Software is licensed under the SIL Open Font License, Version 1.1."
    builder.setupNameTable(
        {"familyName": "Boxes", "styleName": "Regular", "copyright": "Copyright X", "licenseDescription": license_text}
    )
    builder.setupOS2()
    builder.setupPost()
    addOpenTypeFeaturesFromString(builder.font, "feature ccmp { sub thumb tone by thumb_tone; } ccmp;")
    builder.save(path)
    return path


def build_font(root: Path, broken: bool) -> Path:
    (root / "emoji-test.txt").write_text(EMOJI_LIST + (MORE_EMOJI if broken else ""))
    return write_font(root / "Boxes.ttf")


EMOJI = ["1f600.png", "263a-fe0f.png", "1f44d.png", "1f44d-1f3fd.png"]
GROUPS = ["People & Body", "Smileys & Emotion"]


SAMPLES = {
    "folder": Sample(build_folder, FOLDER, [0, 0, 1, 2], ["cat", "dog", "emu"], FOLDER[1]),
    "imagenet": Sample(build_imagenet, IMAGENET, [0, 0, 1, 2], ["n01440764", "n02000000", "n03000000"], IMAGENET[1]),
    "imagenet-lt": Sample(
        *(build_imagenet_lt, [IMAGENET[0], IMAGENET[1], IMAGENET[3]], [0, 0, 2]),
        *(["n01440764", "n02000000", "n03000000"], IMAGENET[1], ["--format=imagenet-lt"]),
        is_recognised=False,
    ),
    "coco": Sample(
        *(build_coco, [f"train2017/{i:012d}.png" for i in (9, 25, 30)], None, None, "train2017/000000000025.png"),
    ),
    "lsun": Sample(
        *(build_lsun, ["bedroom/00a", "bedroom/00b", "bedroom/00c", "tower/00d"], [0, 0, 0, 1]),
        *(["bedroom", "tower"], "bedroom/00b"),
    ),
    "cifar": Sample(build_cifar, CIFAR, [2, 0, 1, 2, 0, 0, 0], ["airplane", "automobile", "bird"], "data_batch_2"),
    "mnist": Sample(build_mnist, [f"train/{i:05d}" for i in range(4)], [3, 0, 3, 1], list("0123"), "train/00003"),
    "parquet": Sample(build_parquet, PARQUET, [2, 0, 0, 2, 0, 1], ["ant", "bee", "cow"], PARQUET[1]),
    "cityscapes": Sample(build_cityscapes, CITIES, [0, 1, 1], ["aachen", "bremen"], CITIES[1]),
    "metfaces": Sample(build_metfaces, FACES, None, None, FACES[1]),
    "pacs": Sample(build_pacs, PACS, [0, 1, 0, 1], ["dog", "horse"], PACS[1]),
    "sketches": Sample(build_sketches, SKETCHES, [0, 1, 0], ["airplane", "zebra"], SKETCHES[1]),
    "font": Sample(
        *(build_font, EMOJI, [1, 1, 0, 0], GROUPS, "1f6fc.png"), options=["--emoji-list={root}/emoji-test.txt"]
    ),
}
