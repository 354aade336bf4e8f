"""Sort images into the class folders of two splits: one folder, TinyImageNet, and iNaturalist as shipped.

Files are moved, one rename each, to paths that follow from names and a seed alone. So nothing is lost if the
process is killed, and the same call again finishes the job.
"""

import filecmp
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from satstore.errors import ConfigError, CorruptError, NotFoundError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

Moves = list[tuple[Path, Path]]
"""Paths of files, and their new paths."""


def plan_split(folder: Path, val: float, seed: int, names: tuple[str, str] = ("train", "val")) -> Moves:
    """Plan which files of a folder of class folders go to which split.

    Each class gives its share, at least one image, chosen by the digest of seed and name. Files that an
    earlier call moved count as if they had not been moved.

    Parameters
    ----------
    val
        The share of each class that goes to the second split, in (0, 1).
    """
    if not 0 < val < 1:
        raise ConfigError(f"val is {val}, but has to be above 0 and below 1")
    if not folder.is_dir():
        raise NotFoundError(f"no folder {folder.absolute()}; expected one with a folder of images per class")
    sources = [folder, *(folder / name for name in names)]
    by_class: dict[str, dict[str, Path]] = {}
    for source in sources:
        for place in sorted(source.iterdir()) if source.is_dir() else ():
            if place.is_dir() and place.name not in names and not place.name.startswith("."):
                by_class.setdefault(place.name, {}).update(
                    {path.relative_to(place).as_posix(): path for path in _images(place)}
                )
    if not by_class:
        raise NotFoundError(
            f"{folder.absolute()} has no class folders; expected one folder of images per class"
        )
    moves: Moves = []
    for name, files in sorted(by_class.items()):
        if len(files) < 2:
            raise ConfigError(
                f"class {name!r} in {folder} has {len(files)} image(s), of which no two splits can be made; "
                "add some or remove the folder"
            )
        chosen = set(sorted(files, key=lambda file: _draw(seed, name, file))[: _count(len(files), val)])
        for file, path in files.items():
            moves.append((path, folder / names[file in chosen] / name / file))
    return [(path, place) for path, place in moves if path != place]


PLAN = ".satstore-split.json"
"""The file that records the parameters of a split while it is under way."""


def begin_split(folder: Path, val: float, seed: int) -> Moves:
    """Plan which files go to ``train/`` and ``val/``, and record the parameters for a call that resumes.

    Raises
    ------
    ConfigError
        If the folder is split already, or half split with other parameters.
    """
    asked = {"val": val, "seed": seed}
    if (folder / PLAN).is_file():
        known = json.loads((folder / PLAN).read_text())
        if known != asked:
            raise ConfigError(
                f"{folder} is half split with --val {known['val']} --seed {known['seed']}; go on with these"
            )
    elif there := [name for name in ("train", "val") if (folder / name).exists()]:
        raise ConfigError(
            f"{folder} has {there[0]}/ already; give a folder with a folder of images per class"
        )
    moves = plan_split(folder, val, seed)
    (folder / PLAN).write_text(json.dumps(asked))
    return moves


def finish_split(folder: Path) -> None:
    """Remove the record of a split that is finished."""
    (folder / PLAN).unlink()


def _images(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            yield path


def _draw(seed: int, name: str, file: str) -> str:
    return hashlib.sha256(f"{seed}\0{name}\0{file}".encode(errors="surrogateescape")).hexdigest()


def _count(n_files: int, val: float) -> int:
    return min(n_files - 1, max(1, round(val * n_files)))


def move(moves: Moves) -> Iterator[int]:
    """Move files, and remove folders that become empty; yield the number of files moved so far."""
    for done, (path, place) in enumerate(moves, start=1):
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists() and filecmp.cmp(path, place, shallow=False):
            path.unlink()  # unpacked again after it was moved
            yield done
            continue
        if place.exists():
            raise ConfigError(f"{place} is there already, and {path} would go there; remove one of them")
        path.rename(place)
        yield done
    for folder in sorted({path.parent for path, _ in moves}, key=lambda path: -len(path.parts)):
        while folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent


def plan_tiny_imagenet(root: Path) -> Moves:
    """Plan the moves of TinyImageNet's evaluation images to ``val/<class>/images``."""
    annotations = root / "val" / "val_annotations.txt"
    if not annotations.is_file() or not (root / "train").is_dir():
        raise NotFoundError(
            f"{root} is not TinyImageNet as it is shipped; expected train/ and val/val_annotations.txt in it"
        )
    moves: Moves = []
    for line in annotations.read_text().splitlines():
        file, name, *_ = [*line.split("\t"), ""]
        path, place = root / "val" / "images" / file, root / "val" / name / "images" / file
        if not path.is_file() and not place.is_file():
            raise CorruptError(f"{annotations} names {file!r}, not in {path.parent}; unpack it again")
        if path.is_file():
            moves.append((path, place))
    return moves


def plan_inaturalist(root: Path, into: Path, val: float, seed: int) -> Moves:
    """Plan the moves of iNaturalist's images to ``train/<class>`` and ``test/<class>``.

    The shipped splits (``train20….json`` and ``val20….json``) are used if they lie in ``root`` or beside it;
    otherwise each class gives a share.

    Parameters
    ----------
    root
        The unpacked folder, with ``<supercategory>/<class>/…`` in it, or in its only folder.
    """
    listed = {
        split: _annotated(files[0])
        for split, pattern in (("train", "train2*.json"), ("test", "val2*.json"))
        if (files := sorted([*root.glob(pattern), *root.parent.glob(pattern)]))
    }
    if len(listed) == 2:
        moves: Moves = []
        for split, pairs in listed.items():
            for file, name in pairs:
                path = next((p for p in (root / file, root.parent / file) if p.is_file()), None)
                place = into / split / name / PurePosixPath(file).name
                if path is None and not place.is_file():
                    raise CorruptError(f"the {split} split names {file!r}, not in {root}; unpack it again")
                if path is not None:
                    moves.append((path, place))
        return moves
    folders = [p for p in sorted(root.iterdir()) if p.is_dir()] if root.is_dir() else []
    inner = folders[0] if len(folders) == 1 else root
    classes = sorted(p for p in inner.glob("*/*") if p.is_dir()) if inner.is_dir() else []
    if not classes:
        raise NotFoundError(f"{root} is not iNaturalist as it is shipped; expected <supercategory>/<class>/")
    moves = []
    for folder in classes:
        found = {path.name: path for path in _images(folder)}
        known = {p.name for split in ("train", "test") for p in (into / split / folder.name).glob("*")}
        names = sorted({*found, *known}, key=lambda file: _draw(seed, folder.name, file))
        if len(names) < 2:
            raise ConfigError(f"class {folder.name!r} has {len(names)} image(s), too few for two splits")
        chosen = set(names[: _count(len(names), val)])
        for name, path in found.items():
            moves.append((path, into / ("test" if name in chosen else "train") / folder.name / name))
    return moves


def _annotated(file: Path) -> Iterable[tuple[str, str]]:
    """Read file name and class of each image from an annotation file; a class is its category's number."""
    try:
        content = json.loads(file.read_text())
        files = {image["id"]: image["file_name"] for image in content["images"]}
        return [(files[a["image_id"]], str(a["category_id"])) for a in content["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(
            f"{file} is no annotation file: {type(error).__name__} {error}; expected images and annotations"
        ) from error
