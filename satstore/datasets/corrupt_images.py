"""Find images that can't be decoded, and leave them out of a dataset."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from satstore.datasets.image_data import ImageData, ImageSplit, fingerprint
from satstore.datasets.image_folder import FileSource, decode
from satstore.datasets.in_memory import ProgressCallback, run_in_threads
from satstore.errors import CorruptError, NotFoundError


def find_corrupt(source: FileSource, progress: ProgressCallback | None = None) -> dict[int, str]:
    """Decode every image, and return the index of each that can't be, with the reason."""

    def check(indices: range) -> dict[int, str]:
        found = {}
        for index in indices:
            try:
                decode(source.folder / source.names[index], source.resolution, source.scaled_to)
            except CorruptError as error:
                found[index] = str(error)
        return found

    corrupt: dict[int, str] = {}
    for done, found in run_in_threads(check, len(source)):
        corrupt |= found
        if progress:
            progress(done, len(source))
    return corrupt


def skip_corrupt(data: ImageData, known: Mapping[str, Sequence[str]] | None = None) -> ImageData:
    """Leave out the images that can't be decoded, and note their names; sample ids don't change.

    Parameters
    ----------
    known
        The names that were left out before, by split: the files are not read again. A file that became
        corrupt since then is an error when it is read.
    """
    splits = {"train": data.train, "train_plain": data.train_plain, "eval": data.eval}
    skipped: dict[str, tuple[str, ...]] = {}
    for name in ("train", "eval"):
        source = splits[name].source
        if not isinstance(source, FileSource):
            continue
        if known is None:
            corrupt = set(find_corrupt(source))
        else:
            names = set(known.get(name, ()))
            corrupt = {index for index, known_as in enumerate(source.known_as) if known_as in names}
        skipped[name] = tuple(source.known_as[index] for index in sorted(corrupt))
        kept = [index for index in range(len(source)) if index not in corrupt]
        fewer = source.only(kept)
        for split in ("train", "train_plain") if name == "train" else ("eval",):
            whole = splits[split]
            splits[split] = ImageSplit(fewer, whole.labels[kept], whole.sample_ids[kept], whole.transforms)
            for label in sorted(set(whole.labels.tolist()) - set(splits[split].labels.tolist())):
                raise NotFoundError(
                    f"{data.name}: no {name} image of class {data.classes[label]!r} can be decoded; "
                    "get its images again"
                )
    if not any(skipped.values()):
        return replace(data, skipped=skipped)
    return replace(
        data,
        train=splits["train"],
        train_plain=splits["train_plain"],
        eval=splits["eval"],
        fingerprint=fingerprint(data.classes, splits["train_plain"], splits["eval"]),
        skipped=skipped,
    )
