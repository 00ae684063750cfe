"""Make a smaller data set of a folder of images: the first N training images of each class, and the whole test set.

$ python experiments/subset.py CIFAR-10-FOLDER data/cifar10-10k --per-class 1000
"""

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="has train/ and test/, each with a folder per class")
    parser.add_argument("target", type=Path, help="a new folder; its images are links to the source's")
    parser.add_argument("--per-class", type=int, required=True, help="training images to take of each class, by name")
    options = parser.parse_args()
    source = options.source.resolve()
    options.target.mkdir(parents=True)
    (options.target / "test").symlink_to(source / "test")
    for folder in sorted(path for path in (source / "train").iterdir() if path.is_dir()):
        images = sorted(path for path in folder.iterdir() if path.is_file())
        if len(images) < options.per_class:
            parser.error(f"{folder} has {len(images)} images, fewer than --per-class {options.per_class}")
        (options.target / "train" / folder.name).mkdir(parents=True)
        for image in images[: options.per_class]:
            (options.target / "train" / folder.name / image.name).symlink_to(image)


if __name__ == "__main__":
    main()
