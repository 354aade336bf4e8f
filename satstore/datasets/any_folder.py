"""Any folder of images or texts, with labels or without.

It is class folders; or files alone, which have no labels; or ``train/`` and ``val/`` (or ``test/``), each of
which is class folders or files alone. A text is a file in UTF-8 whose name ends in ``.txt``. Names are
sorted, and hidden ones passed over, as ``ImageFolder:PATH`` does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from satstore.datasets.class_folders import IMAGE_SUFFIXES
from satstore.datasets.image_folder import find_common_classes, iterate_files, list_files, list_folders
from satstore.datasets.random_split import split_at_random
from satstore.datasets.raw_data import RawData, RawFiles, RawKind, RawSplit
from satstore.errors import ConfigError, NotFoundError
from satstore.system.text import counted, list_first

SUFFIXES: dict[RawKind, tuple[str, ...]] = {"image": IMAGE_SUFFIXES, "text": (".txt",)}


@dataclass(frozen=True)
class _Listing:
    """The files of a folder, and the class of each; no classes where there are no class folders."""

    folder: Path
    kind: RawKind
    names: Sequence[str]
    labels: Sequence[int]
    classes: Sequence[str]

    def at(self, indices: Sequence[int] | NDArray[np.int64]) -> RawSplit:
        """Return some of the files as a split."""
        ids = np.asarray(indices, np.int64)
        labels = np.asarray(self.labels, np.int64)[ids] if self.classes else None
        return RawSplit(RawFiles(self.folder, [self.names[n] for n in ids], self.kind), labels, ids)


def read_any_folder(
    path: Path, takes: RawKind | Literal["any"], share: float | None = None, seed: int = 0
) -> RawData:
    """List the images or the texts of a folder, and their classes.

    Parameters
    ----------
    takes
        What the model takes; files of the other kind are passed over. ``any``: what the folder holds.
    share
        The share of the samples that is drawn for evaluation, by ``seed``; None draws none. Only for folders
        that have no ``val/`` or ``test/``.

    Raises
    ------
    NotFoundError
        If there is no such folder, or it, or a class folder of it, has no files of that kind.
    ConfigError
        If layouts are mixed, or kinds where any is taken, or a share is given where the folder has both
        splits.
    """
    root = path.expanduser().absolute()
    if not root.is_dir():
        raise NotFoundError(f"no folder {root}; check the path")
    kind = _find_kind(root, takes)
    train, evaluation = _find_splits(root)
    listed = _list(train, kind)
    if evaluation is not None:
        if share is not None:
            raise ConfigError(f"--split is for folders of one split; {root} has {evaluation.name}/ already")
        other = _list(evaluation, kind)
        if bool(listed.classes) != bool(other.classes):
            labelled, unlabelled = (train, evaluation) if listed.classes else (evaluation, train)
            raise ConfigError(
                f"{labelled} has class folders and {unlabelled} has none; give both, or neither, or record "
                "one of the two folders by its own path"
            )
        if listed.classes:
            find_common_classes(train, evaluation)
        splits = [part.at(range(len(part.names))) for part in (listed, other)]
    elif share is not None:
        splits = [listed.at(part) for part in split_at_random(len(listed.names), share, seed)]
    else:
        splits = [listed.at(range(len(listed.names)))]
    return RawData(str(path), kind, tuple(listed.classes), splits[0], splits[1] if splits[1:] else None)


def _find_kind(root: Path, takes: RawKind | Literal["any"]) -> RawKind:
    """Return which kind of the files in a folder is to be read."""
    held = [kind for kind, suffixes in SUFFIXES.items() if any(iterate_files(root, root, suffixes))]
    if not held:
        ends = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
        raise NotFoundError(f"{root} has no images and no texts; expected files that end in {ends}")
    if takes == "any" and len(held) > 1:
        raise ConfigError(f"{root} holds images and texts; take the ones away, or move them elsewhere")
    if takes != "any" and takes not in held:
        raise ConfigError(f"the model takes {takes}s, and {root} holds {held[0]}s")
    return held[0] if takes == "any" else takes


def _find_splits(root: Path) -> tuple[Path, Path | None]:
    """Return the folders for training and evaluation; the folder itself and None if it is not split."""
    names = list_folders(root)
    splits = [name for name in ("val", "test") if name in names]
    if "train" in names:
        if not splits and len(names) > 1:
            others = list_first([name for name in names if name != "train"], 4)
            raise ConfigError(
                f"{root} has train/ and no val/ or test/, but {others}; rename train/ if it is a class, "
                f"or give {root / 'train'}"
            )
        return root / "train", root / splits[0] if splits else None
    if splits and len(names) == len(splits):
        raise NotFoundError(f"{root} has {splits[0]}/ and no train/; give {root / splits[0]}, or both")
    return root, None


def _is_file_of(path: Path, suffixes: tuple[str, ...]) -> bool:
    is_visible = not path.name.startswith(".")
    return is_visible and path.name.lower().endswith(suffixes) and path.is_file()


def _list(folder: Path, kind: RawKind) -> _Listing:
    """List the files of a kind in class folders, or in the folder itself."""
    classes, suffixes = list_folders(folder), SUFFIXES[kind]
    by_class = [list_files(folder, name, suffixes) for name in classes]
    beside = sorted(path.name for path in folder.iterdir() if _is_file_of(path, suffixes))
    if not any(by_class) and not beside:
        raise NotFoundError(f"{folder} has no {kind}s; expected class folders of them, or files alone")
    if classes and beside:
        raise ConfigError(
            f"{folder} has {counted(len(beside), kind)} beside the folders {list_first(classes, 4)}; "
            "expected class folders, or files alone: move one or the other"
        )
    for name, files in zip(classes, by_class, strict=True):
        if not files:
            raise NotFoundError(
                f"class folder {folder / name} has no {kind}s; expected files that end in "
                f"{', '.join(suffixes)}: add some or remove the folder"
            )
    labels = [label for label, files in enumerate(by_class) for _ in files]
    names = [name for files in by_class for name in files] or beside
    return _Listing(folder, kind, names, labels, classes)
