"""
Which pictures the embedded checkpoint knows: writes known_images.json beside it, by which the web demo marks answers
about other pictures as guesses.

    python examples/fashion_mosaics/known_images.py

Measured besides, with packages unpacked in one folder, one beside the other: the share of each kind of pictures that
is marked. Photographs are those in `PHOTOGRAPHS`; all else in the packages is drawings, renderings and diagrams.

    pip download --no-deps scikit-image scikit-learn      # and `unzip -d FOLDER/scikit-image`, `... scikit-learn`
    apt-get download lomiri-wallpapers-16.04 ...          # and `dpkg -x FILE FOLDER/lomiri-wallpapers-16.04`
    python examples/fashion_mosaics/known_images.py --packages FOLDER --output benchmarks/results/known_images.json
"""

import argparse
import io
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from mosaics import DATASET_FOLDER, ITEM_PIXELS, draw_mosaic, load_items
from PIL import Image, ImageOps
from transformers import AutoModelForImageTextToText, AutoProcessor

from mqt_llava.evaluation.known_images import KnownImages
from mqt_llava.models.processing_compressed_llava import load_rgb


REPOSITORY = Path(__file__).parents[2]
DESCRIPTION = "mosaics of 4 x 4 photos of clothes on black"
SHARE = 0.001  # of the mosaics in training that may be marked
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif"}
SIZE = re.compile(r"\d+x\d+")  # as wallpapers are named by
LONGEST = 448  # pixels to which large pictures are cut down, to be quick
PHOTOGRAPHS = {  # by package, the names of files or folders, told from the rest by eye
    "scikit-image": """astronaut brick camera cell chelsea clock_motion coffee coins grass gravel hubble_deep_field ihc
        microaneurysms moon motorcycle_left motorcycle_right page retina rocket text""",
    "scikit-learn": "china flower",
    "lomiri-wallpapers-16.04": """Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Picture_0B_by_freespace
        Picture_1A_by_freespace Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi free_by_Peter_Nerlich
        friends_by_Aitzol_Berasategi greentock_by_Peter_Nerlich life_by_Aitzol_Berasategi
        picosdeeuropa_by_Aitzol_Berasategi seeding_by_Clements_Engelhardt sunset_by_Aitzol_Berasategi""",
    "lomiri-wallpapers-20.04": "Kleiber_by_Lukas_Baubkus",
    "mate-backgrounds": "nature",
    "plasma-workspace-wallpapers": """BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Grey Kite
        OneStandsOut Path summer_1am""",
    "opencv-doc": """aero1 aero3 aloeL aloeR apple baboon basketball1 basketball2 board box_in_scene building
        butterfly chicky_512 ela_original fruits graf1 graf3 home left left01 left02 left03 left04 left05 left06 left07
        left08 left09 left11 left12 left13 left14 leuvenA leuvenB licenseplate_motion messi5 orange right right01
        right02 right03 right04 right05 right06 right07 right08 right09 right11 right12 right13 right14 rubberwhale1
        rubberwhale2 squirrel_cls stuff sudoku 000 001 002 scenetext01 scenetext02 scenetext03 scenetext04 scenetext05
        scenetext06""",
}


def draw_grid(rng: random.Random, photos: np.ndarray, side: int) -> Image.Image:
    """Items side by side in as many rows as columns."""
    chosen = photos[[rng.randrange(len(photos)) for _ in range(side * side)]]
    rows = chosen.reshape(side, side, ITEM_PIXELS, ITEM_PIXELS).swapaxes(1, 2)
    return Image.fromarray(rows.reshape(side * ITEM_PIXELS, side * ITEM_PIXELS)).convert("RGB")


def as_jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=75)
    return Image.open(file).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "at four times the size": lambda image: image.resize((448, 448), Image.Resampling.BICUBIC),
    "at half the size": lambda image: image.resize((56, 56), Image.Resampling.BICUBIC),
    "as JPEG": as_jpeg,
    "on their side": lambda image: image.rotate(90),
    "in a white frame": lambda image: ImageOps.expand(image, 10, "white"),
    "black on white": ImageOps.invert,
}


def kinds_of_mosaics(seed: int, count: int, items: dict[str, np.ndarray]) -> Iterator[tuple[str, list[Image.Image]]]:
    """Pictures that are mosaics, and pictures of the same items that are none."""
    rng, photos = random.Random(seed), np.concatenate(list(items.values()))
    mosaics = [draw_mosaic(rng, items).image for _ in range(count)]
    yield "held-out mosaics", mosaics
    mosaics = mosaics[: count // 10]
    for name, change in CHANGES.items():
        yield f"held-out mosaics {name}", list(map(change, mosaics))
    for side in (1, 2, 3, 5, 6):
        yield f"{side} x {side} held-out items", [draw_grid(rng, photos, side) for _ in mosaics]
    colours = ("white", "black", "grey", "red", "blue")
    yield "one colour", [Image.new("RGB", (300, 200), colour) for colour in colours]


def read(path: Path) -> Image.Image | None:
    """A picture, cut down, or `None` where the file is none, such as a stack of pages."""
    try:
        image = load_rgb(str(path), index=0)
    except ValueError:
        return None
    image.thumbnail((LONGEST, LONGEST))
    return image


def kinds_of_pictures(folder: Path) -> Iterator[tuple[str, list[Image.Image]]]:
    """Of each package its photographs, then its other pictures; of several sizes of a wallpaper the first."""
    for package in sorted(path for path in folder.iterdir() if path.is_dir()):
        photographs, others, seen = [], [], set()
        names = set(PHOTOGRAPHS.get(package.name, "").split())
        for path in sorted(package.rglob("*")):
            if path.suffix.lower() not in SUFFIXES or path.is_symlink() or path.stem == "screenshot":
                continue
            key = path.parent if SIZE.fullmatch(path.stem) else path.read_bytes()
            if key in seen or (image := read(path)) is None:
                continue
            seen.add(key)
            is_photograph = bool(names & {*path.relative_to(package).parts[:-1], path.stem})
            (photographs if is_photograph else others).append(image)
        for kind, images in (("photographs", photographs), ("other pictures", others)):
            if images:
                yield f"{kind} in {package.name}", images


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=REPOSITORY / "model_cards" / "mqt-llava-tiny")
    parser.add_argument("--mosaics", type=int, default=3000, help="held-out ones, to measure on")
    parser.add_argument("--training-mosaics", type=int, default=5000, help="to fit on, and as many for the threshold")
    parser.add_argument("--packages", type=Path, help="folder with a folder for each package, see above")
    parser.add_argument("--data-folder", default=DATASET_FOLDER, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--output", type=Path, help="JSON file for what is measured")
    args = parser.parse_args(argv)

    model = AutoModelForImageTextToText.from_pretrained(args.model).eval()
    image_processor = AutoProcessor.from_pretrained(args.model).image_processor
    rng, items = random.Random(0), load_items("train", args.data_folder)
    drawn = [draw_mosaic(rng, items).image for _ in range(2 * args.training_mosaics)]
    halves = drawn[: args.training_mosaics], drawn[args.training_mosaics :]
    known = KnownImages.fit(model, image_processor, *halves, DESCRIPTION, SHARE)
    known.save(args.model)

    kinds, results = list(kinds_of_mosaics(1, args.mosaics, load_items("t10k", args.data_folder))), {}
    for name, images in kinds + list(kinds_of_pictures(args.packages) if args.packages else []):
        distances = known.distances(model, image_processor, images)
        results[name] = {
            "pictures": len(images),
            "marked": int((distances > known.threshold).sum()),
            "distances": [round(float(number), 3) for number in distances.quantile(distances.new_tensor([0, 0.5, 1]))],
        }
        print(f"{name:46} {results[name]['marked']:5} of {len(images):5} marked")
    figures = {"checkpoint": known.checkpoint, "threshold": known.threshold, "results": results}
    if args.output:
        args.output.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


if __name__ == "__main__":
    main()
