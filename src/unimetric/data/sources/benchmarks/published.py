"""The eight benchmark datasets as their authors published them: counts, addresses and usual folders.

The train and test classes are those of Kim, Kim and Kwak, *Learning Unified Distance Metric Across Diverse Data
Distributions with Parameter-Efficient Transfer Learning*, WACV 2025 (arXiv 2309.08944).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unimetric.data.catalog import Item


@dataclass(frozen=True, slots=True)
class Published:
    """Facts about a dataset that do not depend on a copy of it."""

    title: str
    """Its name in the field."""
    all_images: int
    """Its images, over all roles."""
    images: Mapping[str, int]
    """Its images by `Item.role`; empty where only the sum was published."""
    classes: Mapping[str, int]
    """Its classes by `Item.role`; train and test classes are disjoint, query and gallery classes the same."""
    home: str
    """The address of its authors' page."""
    download: tuple[str, ...]
    """The files to take from there."""
    folders: tuple[str, ...]
    """Usual names of its folder, the most usual first."""
    marks: tuple[tuple[str, ...], ...]
    """Groups of files, relative to the folder; a folder with all of one group is this dataset's."""

    def downloads(self) -> str:
        """Return `download` in words: "a, b and c"."""
        *others, last = self.download
        return f"{', '.join(others)} and {last}" if others else last


PUBLISHED: dict[str, Published] = {
    "cub200": Published(
        title="CUB-200-2011",
        all_images=11_788,
        images={"train": 5_864, "test": 5_924},
        classes={"train": 100, "test": 100},
        home="https://www.vision.caltech.edu/datasets/cub_200_2011/",
        download=("CUB_200_2011.tgz",),
        folders=("CUB_200_2011", "CUB-200-2011", "CUB200", "cub200", "CUB", "cub"),
        marks=(("image_class_labels.txt",), ("images.txt", "images")),
    ),
    "cars196": Published(
        title="Cars-196",
        all_images=16_185,
        images={"train": 8_054, "test": 8_131},
        classes={"train": 98, "test": 98},
        home="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        download=("car_ims.tgz", "cars_annos.mat"),
        folders=("CARS196", "cars196", "Cars196", "Cars-196", "stanford_cars", "StanfordCars", "CARS", "Cars", "cars"),
        marks=(
            ("cars_annos.mat",),
            ("devkit/cars_train_annos.mat",),
            ("devkit/cars_test_annos_withlabels.mat",),
            ("cars_train_annos.mat",),
            ("cars_test_annos_withlabels.mat",),
        ),
    ),
    "sop": Published(
        title="Stanford Online Products",
        all_images=120_053,
        images={"train": 59_551, "test": 60_502},
        classes={"train": 11_318, "test": 11_316},
        home="https://cvgl.stanford.edu/projects/lifted_struct/",
        download=("Stanford_Online_Products.zip",),
        folders=("Stanford_Online_Products", "StanfordOnlineProducts", "stanford_online_products", "SOP", "sop"),
        marks=(("Ebay_train.txt",), ("Ebay_test.txt",)),
    ),
    "inshop": Published(
        title="In-Shop Clothes Retrieval",
        all_images=52_712,
        images={"train": 25_882, "query": 14_218, "gallery": 12_612},
        classes={"train": 3_997, "query": 3_985, "gallery": 3_985},
        home="https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
        download=("Img/img.zip", "Eval/list_eval_partition.txt"),
        folders=(
            "In-shop Clothes Retrieval Benchmark",
            "In-shop_Clothes_Retrieval_Benchmark",
            "Inshop_Clothes",
            "In-Shop",
            "InShop",
            "Inshop",
            "inshop",
        ),
        marks=(("list_eval_partition.txt",), ("Eval/list_eval_partition.txt",), ("Anno/list_eval_partition.txt",)),
    ),
    "nabirds": Published(
        title="NABirds",
        all_images=48_562,
        images={"train": 22_909, "test": 25_653},
        classes={"train": 278, "test": 277},
        home="https://dl.allaboutbirds.org/nabirds",
        download=("nabirds.tar.gz",),
        folders=("nabirds", "NABirds", "NABIRDS"),
        marks=(("image_class_labels.txt", "hierarchy.txt"), ("images.txt", "images", "hierarchy.txt")),
    ),
    "dogs": Published(
        title="Stanford Dogs",
        all_images=20_580,
        images={},
        classes={"train": 60, "test": 60},
        home="http://vision.stanford.edu/aditya86/ImageNetDogs/",
        download=("images.tar", "lists.tar"),
        folders=("StanfordDogs", "Stanford_Dogs", "stanford_dogs", "stanford-dogs", "Dogs", "DOGS", "dogs"),
        marks=(("file_list.mat",), ("lists/file_list.mat",)),
    ),
    "flowers102": Published(
        title="Oxford Flowers-102",
        all_images=8_189,
        images={"train": 3_493, "test": 4_696},
        classes={"train": 51, "test": 51},
        home="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        download=("102flowers.tgz", "imagelabels.mat", "setid.mat"),
        folders=("flowers102", "Flowers102", "flowers-102", "Flowers-102", "102flowers", "flowers", "Flowers"),
        marks=(("imagelabels.mat",), ("setid.mat",)),
    ),
    "aircraft": Published(
        title="FGVC-Aircraft",
        all_images=10_000,
        images={"train": 5_000, "test": 5_000},
        classes={"train": 50, "test": 50},
        home="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        download=("fgvc-aircraft-2013b.tar.gz",),
        folders=("fgvc-aircraft-2013b", "FGVC-Aircraft", "fgvc-aircraft", "FGVCAircraft", "Aircraft", "aircraft"),
        marks=tuple(
            (f"{folder}images_variant_{part}.txt",) for folder in ("data/", "") for part in ("trainval", "test")
        ),
    ),
}
"""By the name of the source."""


def count_differences(name: str, items: Sequence[Item]) -> list[str]:
    """Return the differences of a copy, of which each item has a role, from the published counts, one phrase each."""
    published = PUBLISHED[name]
    differences = []
    for role, wanted in published.images.items():
        found = sum(item.role == role for item in items)
        if found != wanted:
            differences.append(f"{found} {role} images, not {wanted}")
    if not published.images and len(items) != published.all_images:
        differences.append(f"{len(items)} images, not {published.all_images}")
    for role, wanted in published.classes.items():
        found = len({item.label for item in items if item.role == role})
        if found != wanted:
            differences.append(f"{found} {role} classes, not {wanted}")
    return differences
