"""Formats that are folders of image files: layouts, splits, and what is kept of each image."""

import json
import zipfile
from pathlib import Path

import pytest
from conftest import invoke
from format_samples import build_imagenet_lt, build_pacs, coco_json, picture, write_coco, write_images

import dataset_tool


def convert(source: Path, *options: object) -> dict:
    """Convert at 8 px; returns dataset.json, with what was said under 'said'."""
    dest = source.parent / "o.zip"
    arguments = ["convert", "--source", source, "--dest", dest, "--resolution=8", "--workers=1", "--overwrite"]
    result = invoke(dataset_tool.main, *map(str, [*arguments, *options]))
    assert result.exit_code == 0, result.output
    with zipfile.ZipFile(dest) as archive:
        return json.loads(archive.read("dataset.json")) | {"said": result.stdout}


@pytest.fixture
def refusal(refused, tmp_path):
    def run(*options: object) -> str:
        arguments = ["convert", "--source", tmp_path / "in", "--dest", tmp_path / "r.zip", "--resolution=8"]
        error = refused(dataset_tool.main, *map(str, [*arguments, *options]))
        assert not (tmp_path / "r.zip").exists()
        return error

    return run


def labels(found: dict) -> dict[str, str]:
    """Name in the source -> name of the class."""
    numbers = [number for _, number in found["labels"]]
    return dict(zip(found["sources"].values(), [found["class_names"][i] for i in numbers], strict=True))


def attributes(found: dict, key: str) -> dict[str, object]:
    return {found["sources"][name]: row[key] for name, row in found["attributes"].items() if key in row}


# -- Folders and zips


def test_folders_below_the_class_are_kept_and_survive_a_second_conversion(tmp_path):
    write_images(tmp_path / "in", ["cat/persian/0.png", "cat/1.png", "dog/young/brown/2.png"])
    found = convert(tmp_path / "in")
    assert attributes(found, "subclass") == {"cat/persian/0.png": "persian", "dog/young/brown/2.png": "young/brown"}
    (tmp_path / "o.zip").rename(tmp_path / "first.zip")
    again = convert(tmp_path / "first.zip")
    assert again["attributes"] == found["attributes"] and again["class_names"] == ["cat", "dog"]
    assert again["class_counts"] == [2, 1]


def test_no_subclass_where_folders_are_no_classes(tmp_path):
    write_images(tmp_path / "in", ["loose.png", "cat/persian/0.png"])
    assert "attributes" not in convert(tmp_path / "in")


# -- ImageNet

SYNSETS = ["n01440764", "n01443537", "n02000000"]
TRAIN = [f"train/{synset}/{synset}_{i}.png" for synset in SYNSETS for i in range(2)]


def test_val_is_numbered_by_train_even_when_it_lacks_a_class(tmp_path):
    write_images(tmp_path / "in", [*TRAIN, "val/n02000000/x.png", "val/n09999999/y.png"])
    found = convert(tmp_path / "in", "--split=val")
    assert found["labels"] == [["00000/img00000000.png", 2]] and found["class_names"] == SYNSETS
    assert found["class_counts"] == [0, 0, 1] and found["split"] == "val"
    (tmp_path / "o.zip").rename(tmp_path / "val.zip")
    assert convert(tmp_path / "val.zip")["split"] == "val"  # a second conversion does not forget it
    assert found["refused"] == {"val/n09999999/y.png": "its synset n09999999 is not in train"}


def test_kaggle_layout_with_its_solution_and_mapping(tmp_path):
    data = tmp_path / "in" / "ILSVRC" / "Data" / "CLS-LOC"
    write_images(data, [*TRAIN, "val/ILSVRC2012_val_00000001.png", "val/ILSVRC2012_val_00000002.png"])
    (tmp_path / "in" / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nILSVRC2012_val_00000002,n01443537 1 2 3 4 n01443537 5 6 7 8 \n"
        "ILSVRC2012_val_00000001,n02000000 1 2 3 4 \n"
    )
    (tmp_path / "in" / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca\nn01443537 goldfish\n")
    found = convert(tmp_path / "in", "--split=val")
    assert list(labels(found).values()) == ["n02000000", "n01443537"]
    assert found["class_descriptions"] == ["tench, Tinca", "goldfish", ""]
    assert convert(data, "--split=val")["labels"] == found["labels"]  # the root of the images will do
    assert convert(tmp_path / "in")["class_counts"] == [2, 2, 2]


@pytest.mark.parametrize("lines", ["a.JPEG 2\nb.JPEG 0\n", "val/a.png n02000000\nval/b.png n01440764\n"])
def test_flat_val_with_a_list(tmp_path, lines, refusal):
    write_images(tmp_path / "in", [*TRAIN, "val/a.png", "val/b.png", "val/c.png"])
    assert "val/ is not sorted into synsets" in refusal("--split=val")
    (tmp_path / "list").write_text(lines)
    found = convert(tmp_path / "in", "--split=val", "--list", tmp_path / "list")
    assert labels(found) == {"val/a.png": "n02000000", "val/b.png": "n01440764"}
    assert found["refused"] == {"val/c.png": "no label in the list"}
    (tmp_path / "in" / "val.txt").write_text(lines)
    assert convert(tmp_path / "in", "--split=val")["labels"] == found["labels"]
    (tmp_path / "list").write_text("a.png 3\n")
    error = refusal("--split=val", "--list", tmp_path / "list")
    assert "line 1 is 'a.png 3'" in error and "a number below 3" in error
    assert "nowhere does not exist; expected a text file" in refusal("--split=val", "--list", tmp_path / "nowhere")
    error = refusal("--format=imagenet", "--list", tmp_path / "list")
    assert "sorted into synsets already" in error and "--format=imagenet-lt" in error


def test_lists_in_imagenet_do_not_make_it_the_subset(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    build_imagenet_lt(tmp_path / "in", broken=False)
    found = convert(tmp_path / "in")
    assert found["format"] == "imagenet" and len(found["sources"]) == 4
    assert len(convert(tmp_path / "in", "--split=val")["sources"]) == 1
    monkeypatch.chdir(tmp_path)
    found = convert(tmp_path / "in", "--list=ImageNet_LT_train.txt")  # sought in the source, too
    assert found["format"] == "imagenet-lt" and len(found["sources"]) == 3
    (tmp_path / "ImageNet_LT_train.txt").write_text("train/n03000000/3.png 2\n")  # the working folder comes first
    assert len(convert(tmp_path / "in", "--list=ImageNet_LT_train.txt")["sources"]) == 1


def test_list_that_is_nowhere_is_named_with_both_places(tmp_path, refusal, monkeypatch):
    (tmp_path / "in").mkdir()
    build_imagenet_lt(tmp_path / "in", broken=False)
    monkeypatch.chdir(tmp_path)
    error = refusal("--format=imagenet-lt", "--list=gone.txt")
    assert f"--list=gone.txt does not exist in the working folder {tmp_path}, nor in {tmp_path / 'in'}" in error


@pytest.mark.parametrize("name", ["../secret.png", "train/../../secret.png", "{root}/secret.png"])
def test_nothing_outside_the_source_is_read(name, tmp_path, refusal):
    name = name.format(root=tmp_path)
    write_images(tmp_path, ["secret.png", "in/train/n01440764/0.png"])
    (tmp_path / "list").write_text(f"train/n01440764/0.png 0\n{name} 1\n")
    error = refusal("--format=imagenet-lt", "--list", tmp_path / "list")
    assert ", which is outside" in error  # a long name is cut

    write_coco(tmp_path / "in", "train", {1: [], 2: []})
    path = tmp_path / "in" / "annotations" / "instances_train2017.json"
    content = coco_json({1: [], 2: []}, {})
    content["images"][1]["file_name"] = name
    path.write_text(json.dumps(content))
    error = refusal("--format=coco")
    assert " leaves the folder of images" in error


def test_class_numbers_of_a_list_have_a_limit(tmp_path, refusal):
    write_images(tmp_path / "in", TRAIN)
    (tmp_path / "list").write_text(f"{TRAIN[0]} 4000000000000\n")
    assert "line 1 has the class 4000000000000; expected less than 1,000,000" in refusal("--list", tmp_path / "list")


def test_long_tailed_list_decides_images_and_labels(tmp_path, refusal):
    (tmp_path / "in").mkdir()
    build_imagenet_lt(tmp_path / "in", broken=False)
    (tmp_path / "my_list").write_text("train/n03000000/3.png 2\ntrain/n01440764/0.png 0\ntrain/n02000000/gone.png 1\n")
    found = convert(tmp_path / "in", "--format=imagenet-lt", "--list", tmp_path / "my_list")
    assert labels(found) == {"train/n01440764/0.png": "n01440764", "train/n03000000/3.png": "n03000000"}
    assert "no such file" in found["refused"]["train/n02000000/gone.png"] and found["class_counts"] == [1, 0, 1]

    (tmp_path / "my_list").write_text("train/n03000000/3.png 0\ntrain/n01440764/0.png 5\n")  # not ImageNet's numbers
    found = convert(tmp_path / "in", "--format=imagenet-lt", "--list", tmp_path / "my_list")
    assert [n for _, n in found["labels"]] == [5, 0] and found["num_classes"] == 6 and found["class_names"] is None

    options = ["--format=imagenet-lt", "--list", tmp_path / "my_list"]
    assert "both say which images" in refusal(*options, "--split=train")
    for text, said in [
        ("train/a.png\n", "line 1 is 'train/a.png'"),
        ("a.png 0\na.png 1\n", "line 2 gives a.png another label"),
        ("a.png 0\n", "none of them in"),
        ("", "is empty"),
    ]:
        (tmp_path / "my_list").write_text(text)
        assert said in refusal(*options)
    (tmp_path / "in" / "ImageNet_LT_train.txt").unlink()
    assert "needs --list=ImageNet_LT_train.txt" in refusal("--format=imagenet-lt")


# -- COCO


def test_val_is_divided_by_combinations_seen_in_train(tmp_path):
    train = {1: [(1, 8, 8), (18, 8, 8)], 2: [(18, 8, 8)]}
    val = {7: [(18, 8, 8), (1, 4, 4), (18, 2, 2)], 5: [(1, 8, 8)], 6: [(18, 9, 9)]}
    (tmp_path / "in").mkdir()
    write_coco(tmp_path / "in", "train", train)
    write_coco(tmp_path / "in", "val", val)
    found = convert(tmp_path / "in", "--split=val")
    name = "val2017/{:012d}.png".format
    assert attributes(found, "classes") == {name(5): [1], name(6): [18], name(7): [1, 18]}
    assert attributes(found, "combination") == {name(5): "unseen", name(6): "seen", name(7): "seen"}
    assert found["categories"] == {"1": "person", "18": "dog"} and found["labels"] is None
    assert "2 images have a combination seen in train, 1 an unseen one" in found["said"]
    assert "combination" not in next(iter(convert(tmp_path / "in")["attributes"].values()))
    unseen = convert(tmp_path / "in", "--split=val", "--only=combination=unseen")
    assert list(unseen["sources"].values()) == [name(5)]
    assert list(convert(tmp_path / "in", "--split=val", "--skip=classes=18")["sources"].values()) == [name(5)]


def test_protocol_of_layout_to_image_work(tmp_path, refusal):
    """Of 16x16 = 256 pixels 2 % are 5.12; images are named after what they test."""
    three = [(1, 8, 8), (18, 8, 8), (18, 3, 3)]
    things = {
        3: three,
        4: [*three, *[(1, 2, 2)] * 6],  # 4 of 256 pixels are too small, so 3 are left
        9: [*three, *[(1, 8, 8, "crowd")] * 6],  # crowds are no objects: 3 are left
        5: [*three, *[(1, 8, 8)] * 6],  # 9 are too many
        6: three[:2],  # with stuff: 3
        7: three,  # without stuff annotations: not part of the protocol
        8: [(1, 8, 8)],  # the category other is no object: 2 are too few
    }
    stuff = {
        3: [(183, 16, 16)],
        4: [(183, 16, 16)],
        9: [(183, 16, 16)],
        5: [(105, 9, 9)],
        6: [(105, 9, 9)],
        8: [(105, 9, 9), (183, 9, 9)],
    }
    (tmp_path / "in").mkdir()
    write_coco(tmp_path / "in", "val", things, stuff)
    found = convert(tmp_path / "in", "--objects=3-8", "--min-object-area=0.02")
    name = "val2017/{:012d}.png".format
    expected = {name(3): [1, 18], name(4): [1, 18], name(6): [1, 18, 105], name(9): [1, 18]}
    assert attributes(found, "classes") == expected
    assert set(attributes(found, "part").values()) == {"validation"}  # the first 1,024
    everything = convert(tmp_path / "in")
    assert len(everything["sources"]) == 7 and attributes(everything, "classes")[name(8)] == [1, 105]
    assert "no image of val has as many objects" in refusal("--objects=100-200")


def test_part_of_val_follows_the_order_of_the_annotations(tmp_path, monkeypatch):
    monkeypatch.setattr("training.formats.coco.NUM_VALIDATION", 1)
    (tmp_path / "in").mkdir()
    write_coco(tmp_path / "in", "val", {9: [(1, 8, 8)], 2: [(1, 8, 8)]})
    found = convert(tmp_path / "in", "--objects=1-8")
    assert attributes(found, "part") == {
        "val2017/000000000002.png": "evaluation",
        "val2017/000000000009.png": "validation",
    }


def test_damaged_annotations_are_named(tmp_path, refusal):
    (tmp_path / "in").mkdir()
    write_coco(tmp_path / "in", "train", {1: []})
    path = tmp_path / "in" / "annotations" / "instances_train2017.json"
    for text in ("{", "[]", json.dumps(coco_json({1: [(1, 2, 3)]}, {}) | {"annotations": [{"id": 1}]})):
        path.write_text(text)
        assert f"{path} is no COCO annotation file" in refusal()
    content = coco_json({1: [], 2: []}, {})
    content["images"][1]["file_name"] = content["images"][0]["file_name"]
    path.write_text(json.dumps(content))
    assert "two images have the file_name 000000000001.png" in refusal()


# -- Smaller ones


def test_cityscapes_takes_the_transform(tmp_path):
    write_images(tmp_path / "in" / "leftImg8bit" / "val", ["ulm/0.png", "ulm/1.png"], width=32)
    found = convert(tmp_path / "in", "--split=val", "--transform=pad")
    assert set(labels(found).values()) == {"ulm"} and found["source_sizes"]["00000/img00000000.png"] == [32, 16]
    assert found["transform"] == "pad" and found["crop"] is None


def test_metfaces_keeps_title_and_licence_and_needs_no_json(tmp_path, refusal):
    write_images(tmp_path / "in", ["images/1-00.png"])
    found = convert(tmp_path / "in", "--format=metfaces")
    assert found["license"] == "CC-BY-NC-2.0" and found["labels"] is None and "attributes" not in found
    row = {"image_path": "images/1-00.png", "title": "Lady", "face_idx": 0, "face_spec": {}}
    (tmp_path / "in" / "metfaces.json").write_text(json.dumps([row, row | {"image_path": "images/none.png"}]))
    assert convert(tmp_path / "in")["attributes"] == {"00000/img00000000.png": {"title": "Lady", "face_idx": 0}}
    (tmp_path / "in" / "metfaces.json").write_text("[3]")
    assert "metfaces.json can't be read" in refusal()


def test_pacs_keeps_the_domain(tmp_path, refusal):
    (tmp_path / "in").mkdir()
    build_pacs(tmp_path / "in", broken=False)
    found = convert(tmp_path / "in")
    assert attributes(found, "domain")["photo/dog/2.png"] == "photo"
    by_domain = convert(tmp_path / "in", "--labels=domain", "--skip=domain=photo")
    assert by_domain["class_names"] == ["art_painting", "photo", "sketch"] and by_domain["class_counts"] == [2, 0, 1]
    picture(0).save(tmp_path / "in" / "pacs" / "photo" / "loose.png")
    assert "photo/loose.png lies in no class" in refusal()


def test_sketches_of_every_kind(tmp_path, refusal):
    write_images(tmp_path / "in" / "png", ["airplane/1.png", "zebra/2.png"])
    (tmp_path / "in" / "png" / "filelist.txt").write_text("airplane/1.png\nzebra/2.png\n")
    assert labels(convert(tmp_path / "in")) == {"airplane/1.png": "airplane", "zebra/2.png": "zebra"}
    write_images(tmp_path / "plain", ["apple/1.png", "bear/old/2.png"])
    assert labels(convert(tmp_path / "plain", "--format=sketches")) == {
        "apple/1.png": "apple",
        "bear/old/2.png": "bear",
    }
    picture(0).save(tmp_path / "in" / "png" / "loose.png")
    assert "loose.png lies in no class folder" in refusal()


# -- Which images, which labels


@pytest.fixture
def animals(tmp_path) -> Path:
    write_images(tmp_path / "in", ["cat/a/0.png", "cat/b/1.png", "dog/a/2.png", "dog/c, d/3.png"])
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["--only=subclass=a"], "02"),
        (["--only=subclass=a,b"], "012"),
        (["--only=subclass=a", "--only=subclass=b"], "012"),
        (["--only=subclass=a", "--only=class=dog"], "2"),
        (["--skip=subclass=a,b"], "3"),
        (["--only=class=cat", "--skip=subclass=b"], "0"),
        (["--only=subclass=c, d"], "3"),
        (["--skip=class=cat", "--skip=subclass=a"], "3"),
    ],
)
def test_only_and_skip(animals, options, kept):
    found = convert(animals, *options)
    assert [Path(name).stem for name in found["sources"].values()] == list(kept)
    assert found["class_names"] == ["cat", "dog"] and sum(found["class_counts"]) == len(kept)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only=subclas=a"], "there is no attribute 'subclas'; there are: subclass, class. Did you mean 'subclass'?"),
        (["--only=class=cats"], "no image has class=cats; there are: cat, dog. Did you mean 'cat'?"),
        (["--skip=subclass"], "expected for example --skip subclass=value,value"),
        (["--only=class=cat", "--skip=subclass=a,b"], "no image of"),
        (["--labels=subclas"], "is not one of auto, folders, none, subclass. Did you mean 'subclass'?"),
    ],
)
def test_wrong_filters(animals, options, said, refusal):
    assert said in refusal(*options)


def test_attribute_as_label_needs_it_everywhere(animals, refusal):
    assert convert(animals, "--labels=subclass")["class_names"] == ["a", "b", "c, d"]
    picture(0).save(animals / "cat" / "4.png")
    error = refusal("--labels=subclass")
    assert error.startswith("Error: cat/4.png has no class (3 classes from the attribute subclass); expected one for")
    assert convert(animals, "--labels=subclass", "--only=subclass=a,b")["class_counts"] == [2, 1, 0]
