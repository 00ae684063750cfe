"""Make a smaller data set of a folder of images: the first N images of each class.

$ python experiments/subset.py CIFAR-10-FOLDER data/cifar10-10k --per-class 1000
"""

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="has train/ and test/, each with a folder per class")
    parser.add_argument("target", type=Path, help="a new folder; its images are links to the source's")
    parser.add_argument("--per-class", type=int, required=True, help="training images to take of each class, by name")
    parser.add_argument("--test-per-class", type=int, help="test images likewise; all of them if not given")
    options = parser.parse_args()
    source = options.source.resolve()
    wanted = {"train": options.per_class, "test": options.test_per_class}
    folders = {part: sorted(path for path in (source / part).iterdir() if path.is_dir()) for part in wanted}
    images = {
        folder: sorted(path for path in folder.iterdir() if path.is_file())
        for own in folders.values()
        for folder in own
    }
    for part, count in wanted.items():
        for folder in folders[part]:
            if count is not None and len(images[folder]) < count:
                parser.error(f"{folder} has {len(images[folder])} images, fewer than the {count} asked for")
    for part, count in wanted.items():
        for folder in folders[part]:
            (options.target / part / folder.name).mkdir(parents=True)
            for image in images[folder][:count]:
                (options.target / part / folder.name / image.name).symlink_to(image)


if __name__ == "__main__":
    main()
