"""Checking and sorting datasets, through the command line."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from command_line import call, satstore
from small_data import write_folder, write_image, write_tiny_imagenet

from satstore.datasets.class_folders import PLAN, begin_split, move, plan_split
from satstore.registry import DATASETS


def write_classes(root: Path, n_images: int = 10) -> Path:
    for label, name in enumerate(("ant", "bee", "cat")):
        for image in range(n_images - label):
            write_image(root / name / f"{image}.png", label * 100 + image, (12, 12))
    return root


def files_of(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


# split


def test_split__is_stratified_repeatable_and_read_as_an_image_folder(tmp_path: Path) -> None:
    one, two, other = (write_classes(tmp_path / name) for name in ("one", "two", "other"))
    before = files_of(one)
    for folder, seed in ((one, 1), (two, 1), (other, 2)):
        result = satstore("dataset", "split", folder, "--val", ".2", "--seed", seed)
        assert result.returncode == 0, result.stderr
        assert "21 images in train/, 6 in val/ (27 moved)" in result.stdout
    assert files_of(one) == files_of(two) != files_of(other)
    assert {file.partition("/")[2] for file in files_of(one)} == before
    data = DATASETS[f"ImageFolder:{one}"](resolution=12)
    assert [data.eval.labels.tolist().count(label) for label in range(3)] == [2, 2, 2]
    assert [data.train.labels.tolist().count(label) for label in range(3)] == [8, 7, 6]
    again = satstore("dataset", "split", one, "--val", ".2", "--seed", 1)
    assert again.returncode == 1
    assert "has train/ already" in again.stderr


def test_split__killed_half_way_is_finished_by_the_same_call(tmp_path: Path) -> None:
    whole, parts = write_classes(tmp_path / "whole"), write_classes(tmp_path / "parts")
    assert satstore("dataset", "split", whole).returncode == 0
    for done in move(begin_split(parts, 0.1, 0)):
        if done == 9:
            break
    assert (parts / PLAN).is_file()
    refused = satstore("dataset", "split", parts, "--seed", 3)
    assert refused.returncode == 1
    assert "is half split with --val 0.1 --seed 0; go on with these" in refused.stderr
    assert satstore("dataset", "split", parts).returncode == 0
    assert files_of(parts) == files_of(whole)


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_split__leaves_an_image_of_each_class_in_both(share: float, tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "few", 4)
    places = [place.relative_to(folder).parts[:2] for _, place in plan_split(folder, share, 0)]
    assert set(places) == {(split, name) for split in ("train", "val") for name in ("ant", "bee", "cat")}


def test_split__refuses_in_one_line(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "images", 4)
    for words, expected in (
        ((folder, "--val", 0), "val is 0.0, but has to be above 0 and below 1"),
        ((folder, "--val", 1.5), "val is 1.5"),
        ((tmp_path / "nowhere",), "no folder"),
        ((tmp_path / "images" / "ant",), "has no class folders"),
    ):
        code, _, error = call("dataset", "split", *words)
        assert (code, error.count("\n")) == (1, 1)
        assert expected in error
    (folder / "cat" / "0.png").rename(folder / "0.png")
    (folder / "cat" / "1.png").unlink()
    write_image(folder / "cat" / "0.png", 1)
    assert "class 'cat' in" in call("dataset", "split", folder)[2]
    assert len(files_of(folder)) == 9, "nothing was moved"


# check


def test_check__says_what_there_is(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "insects")
    code, out, _ = call("dataset", "check", f"ImageFolder:{root}")
    assert code == 0
    assert "3 classes" in out
    assert "train: 15 images in" in out
    assert "eval: 9 images in" in out
    code, out, _ = call("dataset", "check", "Digits", "--json")
    report = json.loads(out)
    assert report["splits"]["eval"]["n_images"] == 360
    assert report["n_classes"] == 10

    bad = root / "val" / "bee" / "0.png"
    bad.write_bytes(bad.read_bytes()[:60])
    (root / "train" / "ant" / "1.jpg").write_text("no image")
    code, out, error = call("dataset", "check", f"ImageFolder:{root}")
    assert code == 1
    assert str(bad) in out
    assert str(root / "train" / "ant" / "1.jpg") in out
    assert "2 images of ImageFolder" in error
    assert "on_corrupt" in error


def test_check__of_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    code, out, error = call("dataset", "check", "TinyImageNet", "--data-dir", tmp_path)
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert "TinyImageNet is not in" in error
    assert "no dataset named 'Tiny'" in call("dataset", "check", "Tiny")[2]


# prepare


def test_prepare__tinyimagenet_from_its_archive(tmp_path: Path) -> None:
    shipped = write_tiny_imagenet(tmp_path / "shipped" / "tiny-imagenet-200", layout="shipped")
    before = DATASETS["TinyImageNet"](data_dir=tmp_path / "shipped")
    archive = tmp_path / "data" / "tiny-imagenet-200.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for path in shipped.rglob("*"):
            file.write(path, path.relative_to(shipped.parent))
    for moved in (9, 0):
        result = satstore("dataset", "prepare", "tinyimagenet", archive)
        assert result.returncode == 0, result.stderr
        if moved:
            assert f"{moved} images sorted by class" in result.stdout
    root = tmp_path / "data" / "tiny-imagenet-200"
    assert len(list((root / "val" / "n01" / "images").iterdir())) == 3
    (root / "val" / "val_annotations.txt").unlink()
    after = DATASETS["TinyImageNet"](data_dir=tmp_path / "data")
    assert after.fingerprint == before.fingerprint


def write_inaturalist(root: Path) -> Path:
    for kind, name in (("Aves", "3"), ("Aves", "7"), ("Fungi", "11")):
        for image in range(5):
            write_image(root / kind / name / f"{name}_{image}.jpg", int(name) + image, (16, 12))
    return root


@pytest.mark.parametrize("listed", [True, False])
def test_prepare__inaturalist_from_its_archive(listed: bool, tmp_path: Path) -> None:
    shipped = write_inaturalist(tmp_path / "shipped" / "train_val2018")
    archive = tmp_path / "data" / "train_val2018.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as file:
        file.add(shipped, "train_val2018")
    if listed:
        for split, numbers in (("train2018", (0, 1, 2, 4)), ("val2018", (3,))):
            pairs = [(k, n, i) for k, n in (("Aves", 3), ("Aves", 7), ("Fungi", 11)) for i in numbers]
            images = [
                {"id": place, "file_name": f"train_val2018/{kind}/{n}/{n}_{i}.jpg"}
                for place, (kind, n, i) in enumerate(pairs)
            ]
            annotations = [{"image_id": p, "category_id": n} for p, (_, n, _) in enumerate(pairs)]
            content = {"images": images, "annotations": annotations}
            (archive.parent / f"{split}.json").write_text(json.dumps(content))
    result = satstore("dataset", "prepare", "inaturalist", archive, "--val", ".2")
    assert result.returncode == 0, result.stderr
    data = DATASETS["iNaturalist"](data_dir=archive.parent, resolution=16)
    assert data.classes == ("11", "3", "7")
    assert (len(data.train), len(data.eval)) == (12, 3)
    if listed:
        assert {Path(name).stem[-1] for name in data.eval.source.names} == {"3"}  # type: ignore[attr-defined]


def test_prepare__refuses_archives_that_are_broken_or_reach_outside(tmp_path: Path) -> None:
    write_inaturalist(tmp_path / "train_val2018")
    whole = tmp_path / "train_val2018.tar"
    with tarfile.open(whole, "w") as file:
        file.add(tmp_path / "train_val2018", "train_val2018")
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[:5000])
    evil_tar, evil_zip = tmp_path / "evil.tar", tmp_path / "evil.zip"
    with tarfile.open(evil_tar, "w") as file:
        member = tarfile.TarInfo("../outside.txt")
        member.size = 4
        file.addfile(member, io.BytesIO(b"evil"))
    with zipfile.ZipFile(evil_zip, "w") as zipped:
        zipped.writestr("../outside.txt", "evil")
    folder = tmp_path / "inside"
    folder.mkdir()
    for archive in (cut, evil_tar, evil_zip):
        place = folder / archive.name
        archive.rename(place)
        code, _, error = call("dataset", "prepare", "inaturalist", place)
        assert (code, error.count("\n")) == (1, 1), error
        assert str(place) in error
    assert not (tmp_path / "outside.txt").exists()
    for words, expected in (
        (("tinyimagenet", tmp_path / "nowhere.zip"), "no archive"),
        (("tinyimagenet", folder), "is not TinyImageNet as it is shipped"),
        (("inaturalist", write_folder(tmp_path / "flat") / "train"), "is not iNaturalist as it is shipped"),
    ):
        code, _, error = call("dataset", "prepare", *words)
        assert (code, error.count("\n")) == (1, 1)
        assert expected in error
