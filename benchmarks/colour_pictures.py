"""Makes class folders of real colour pictures to train on: emoji of 64 × 64 pixels, by group.

    npm pack emoji-datasource-google emoji-datasource-twitter
    python benchmarks/colour_pictures.py emoji-datasource-*.tgz --out pictures

The pictures are Noto's (Apache-2.0) and Twemoji's (CC BY 4.0), 729 from each package of version 16.0.0. Their
transparent background becomes white.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from collections import Counter
from pathlib import Path

from PIL import Image

GROUPS = {
    "Animals & Nature": "animals",
    "Flags": "flags",
    "Food & Drink": "food",
    "Smileys & Emotion": "smileys",
}  # category of emoji.json → class folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, nargs="+", metavar="PACKAGE.tgz")
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    arguments = parser.parse_args()
    written = sum((unpack(package, arguments.out) for package in arguments.packages), Counter[str]())
    print(arguments.out, dict(written))


def unpack(package: Path, out: Path) -> Counter[str]:
    """Writes the pictures of one package as `out/CLASS/VENDOR-CODE.png`; number of pictures per class."""
    written = Counter[str]()
    with tarfile.open(package) as archive:
        files = {member.name: member for member in archive}

        def opened(name: str):
            found = archive.extractfile(files[f"package/{name}"])
            assert found is not None
            return found

        vendor = json.load(opened("package.json"))["name"].rpartition("-")[2]
        for emoji in json.load(opened("emoji.json")):
            if emoji["category"] in GROUPS and emoji[f"has_img_{vendor}"]:
                folder = out / GROUPS[emoji["category"]]
                folder.mkdir(parents=True, exist_ok=True)
                with Image.open(opened(f"img/{vendor}/64/{emoji['image']}")) as picture:
                    on_white(picture).save(folder / f"{vendor}-{emoji['image']}")
                written[folder.name] += 1
    return written


def on_white(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


if __name__ == "__main__":
    main()
