"""Cityscapes: leftImg8bit/{train,val,test}/<city>/*.png, 2048x1024: --transform says how they become square.

The city is the class. Source: Cordts et al., The Cityscapes Dataset, CVPR 2016.
"""

from pathlib import Path

from training.formats.format import Format, SourceOptions, choose_split, sub_folders
from training.image_source import Source, class_folders, keep_images, list_folder
from training.labelling import labels_of_words

IMAGES = "leftImg8bit"


def recognises(path: Path) -> bool:
    return (path / IMAGES).is_dir()


def open_cityscapes(path: Path, options: SourceOptions) -> Source:
    split = choose_split(path, options.split, sub_folders(path / IMAGES))
    source = Source(path, split=split)
    keep_images(source, list_folder(path / IMAGES / split, source.refused))
    cities = class_folders(source.files).by_name
    if len(cities) == len(source.files):
        source.labels = labels_of_words(cities, "{} cities")
    else:  # one city only is passed over, as a folder that all images share
        source.labels = labels_of_words({file.name: file.name.split("/")[0] for file in source.files}, "{} city")
    return source


FORMAT = Format(
    "cityscapes", f"{IMAGES}/{{train,val,test}}/<city>/*.png", recognises, open_cityscapes, options=("split",)
)
