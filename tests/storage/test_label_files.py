"""Files of labels: all kinds hold the same labels, and what is no label for each sample is refused."""

import io
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from numpy.typing import NDArray
from safetensors.numpy import save_file

from satstore.errors import ConfigError, NotFoundError, UnknownNameError
from satstore.storage.label_files import as_labels, number_labels, read_label_file
from satstore.storage.numpy_files import read_npz

INDICES = [0, 2, 1, 2, 0]
TEXTS = ["cat", "dog, small", "Möwe", "dog, small", "2"]


def write_files(folder: Path, labels: list[Any]) -> dict[str, str]:
    """Write labels to a file of each kind that can hold them; return the places."""
    frame = pd.DataFrame({"id": range(len(labels)), "label": labels})
    np.save(folder / "a.npy", np.array(labels))
    np.savez(folder / "a.npz", np.array(labels))
    np.savez_compressed(folder / "several.npz", other=np.zeros(3), label=np.array(labels))
    frame.to_csv(folder / "a.csv", index=False)
    frame[["label"]].to_csv(folder / "one.csv", index=False, lineterminator="\r\n")
    frame.to_parquet(folder / "a.parquet")
    (folder / "a.txt").write_text("".join(f"{label}\n" for label in labels), "utf-8")
    places = ["a.npy", "a.npz", "several.npz:label", "a.csv:label", "one.csv", "a.parquet:label", "a.txt"]
    if not isinstance(labels[0], str):
        torch.save(torch.tensor(labels), folder / "a.pt")
        torch.save(
            {"x": torch.zeros(2), "label": torch.tensor(labels, dtype=torch.bfloat16)}, folder / "b.pt"
        )
        places += ["a.pt", "b.pt:label", *write_arrays(folder, np.array(labels))]
    return {place: str(folder / place) for place in places}


def write_arrays(folder: Path, labels: NDArray[Any]) -> list[str]:
    """Write labels beside features, and alone, to files of arrays; return their names."""
    features = np.zeros((len(labels), 2))
    save_file({"x": features, "label": labels}, folder / "a.safetensors")
    with h5py.File(folder / "a.h5", "w") as file:
        file["x"], file["of/label"] = features, labels
    zarr.create_array(folder / "a.zarr", data=labels)
    return ["a.safetensors:label", "a.h5:of/label", "a.zarr"]


@pytest.mark.parametrize("labels", [INDICES, TEXTS], ids=["indices", "texts"])
def test_labels__are_the_same_in_all_kinds_of_files(tmp_path: Path, labels: list[Any]) -> None:
    for name, place in write_files(tmp_path, labels).items():
        found = read_label_file(place)
        assert found.array.tolist() == labels, name
        assert found.are_texts == isinstance(labels[0], str), name
        assert found.source == place


@pytest.mark.parametrize(
    "given",
    [
        INDICES,
        np.array(INDICES, np.uint8),
        np.array(INDICES, float),
        torch.tensor(INDICES, dtype=torch.float16),
        pd.Series(INDICES, dtype=object),
        pd.Series(INDICES, dtype="Int64"),
    ],
    ids=["list", "uint8", "float64", "tensor", "objects", "nullable"],
)
def test_arrays__are_labels(given: Any) -> None:
    assert as_labels(given, "y").array.tolist() == INDICES


@pytest.mark.parametrize(
    "given", [np.array([b"cat", b"dog"]), pd.Categorical(["cat", "dog"]), ["cat", "dog"]]
)
def test_texts__are_labels(given: Any) -> None:
    assert as_labels(given, "y").array.tolist() == ["cat", "dog"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0, 0.5], "y holds 0.5; expected class indices, whole numbers from 0 on, or texts"),
        ([0, -1], "y holds -1; expected class indices"),
        ([0, float("nan")], "y holds nan; expected class indices"),
        ([0, 10**9], "y holds the class index 1000000000; expected indices below 1,048,576"),
        ([0, "cat"], "y holds int, str; expected class indices"),
        (["cat", None], "y holds str, NoneType; expected"),
        ([[1, 0], [0, 1]], "y has shape \\(2, 2\\); expected one label of each sample"),
        ([[1, 0], [0]], "y holds list; expected"),
        ([np.zeros((2, 2)), np.zeros((2, 3))], "y holds lists of several lengths; expected"),
    ],
)
def test_what_is_no_label__is_refused(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_labels(given, "y")


def number(*given: list[Any], classes: list[str] | None = None) -> tuple[list[list[int]], list[str]]:
    """Number lists of labels, named y0, y1 and so on."""
    labels = [as_labels(values, f"y{n}") for n, values in enumerate(given)]
    codes, names = number_labels(labels, classes)
    assert all(found.dtype == np.int64 for found in codes)
    return [found.tolist() for found in codes], names


def test_classes__are_those_of_all_labels() -> None:
    assert number(["dog", "ape"], ["cat"]) == ([[2, 0], [1]], ["ape", "cat", "dog"])
    assert number(["dog", "cat"], classes=["dog", "emu", "cat"]) == ([[0, 2]], ["dog", "emu", "cat"])
    assert number([0, 3], [1]) == ([[0, 3], [1]], ["0", "1", "2", "3"])
    assert number([0, 1], [], classes=["a", "b", "c"]) == ([[0, 1], []], ["a", "b", "c"])


@pytest.mark.parametrize(
    ("given", "classes", "message"),
    [
        (([0], ["cat"]), None, "y0 holds numbers, y1 texts; expected the same of both"),
        (([0], [2]), ["a", "b"], "y1 has labels up to 2, for which 2 classes are too few"),
        ((["cat"], ["dgo"]), ["cat", "dog"], "y1 has the label 'dgo'; did you mean 'dog'?"),
        (([0],), ["a", "b", "a"], "classes has 'a' twice"),
        ((["a", "b\x1b[31m"],), None, "the class 'b\\x1b[31m' has characters that can't be printed"),
    ],
)
def test_labels_of_other_classes__are_refused(
    given: tuple[list[Any], ...], classes: list[str] | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        number(*given, classes=classes)


def write(content: str | bytes) -> Callable[[Path], object]:
    """Return a function that writes content to a path."""
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("y.json", write("[]"), "y.json has the ending '.json'; labels are read from .npy, .npz"),
        ("y.txt", write("cat\n\ndog\n"), "there is no label in line 2"),
        ("y.txt", write("cat\xff\n".encode("latin-1")), "can't be read as labels"),
        ("y.csv", write("id,label\n0,cat\n1\n"), "has the columns id, label; name one: .*y.csv:id"),
        ("y.csv", write("0\n1\n"), "begins with '0' where a column's name is expected"),
        ("y.csv", write("label\n1\n\n0.5\n"), "holds 0.5; expected class indices"),
        ("y.csv", write(""), "y.csv is empty"),
        ("y.npz", lambda path: np.savez(path, a=[0], b=[1]), "has the arrays a, b; name one: .*y.npz:a"),
        ("y.npy", lambda path: np.save(path, np.array([{}]), allow_pickle=True), "Python objects.*pickled"),
        ("y.npy", write("labels"), "can't be read as labels"),
        ("y.pt", write("labels"), "is no file of tensors, and is not loaded"),
        ("y.pt", lambda path: torch.save({"a": os.getcwd}, path), "is no file of tensors, and is not loaded"),
        ("y.parquet", write("labels"), "can't be read as"),
        (
            "y.parquet",
            lambda path: pd.DataFrame({"label": ["cat", None]}).to_parquet(path),
            "column label has 1 cells without a label",
        ),
    ],
)
def test_files_that_hold_no_labels__are_refused(
    tmp_path: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(ConfigError, match=message):
        read_label_file(tmp_path / name)


def test_names_that_are_not_there__are_refused(tmp_path: Path) -> None:
    (tmp_path / "y.csv").write_text("label\ncat\n")
    with pytest.raises(UnknownNameError, match=r"has no column 'lable'; did you mean 'label'\?"):
        read_label_file(f"{tmp_path}/y.csv:lable")
    with pytest.raises(NotFoundError, match=r"no file .*z\.csv"):
        read_label_file(tmp_path / "z.csv")


def header(shape: tuple[int, ...], dtype: str = "<i8") -> bytes:
    """Return the header of a .npy file."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("shape", [(10**12,), (2**40, 2**40), (2**62, 4)])
def test_headers_that_claim_too_much__are_refused(kind: int, shape: tuple[int, ...]) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", kind) as packed:
        packed.writestr("train.npy", header(shape) + bytes(80))
    with pytest.raises(ValueError, match=r"claims .* bytes of values"):
        read_npz(content, len(content.getvalue()))


def test_members_that_claim_too_much__are_refused() -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.writestr("train.npy", header((10**12,)) + bytes(80))
    claimed = content.getvalue().replace(struct.pack("<L", len(header((10**12,))) + 80), b"\xf0\xff\xff\x7f")
    with pytest.raises(ValueError, match=r"claims 2,147,483,632 bytes"):
        read_npz(io.BytesIO(claimed), len(claimed))


@pytest.mark.parametrize("n_cut", range(1, 240, 7))
def test_files_that_are_cut_off__are_refused(n_cut: int) -> None:
    content = io.BytesIO()
    np.savez(content, train=np.arange(9))
    cut = content.getvalue()[:-n_cut]
    with pytest.raises(ValueError, match="as NumPy's format"):
        read_npz(io.BytesIO(cut), len(cut))
