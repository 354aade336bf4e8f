"""Probes, spectra and recordings of real photographs: Fashion-MNIST, as Debian's package installs it.

The oracles are scikit-learn, NumPy and plain PyTorch. The package is ``dataset-fashion-mnist``.
"""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from small_data import read_idx
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import satstore
from satstore.analysis.moments import Moments
from satstore.analysis.spectrum import eigenvalues
from satstore.registry import DATASETS

FOLDER = Path("/usr/share/datasets/fashion-mnist")
N_TRAIN = 12_000
"""So many rows scikit-learn fits in half a minute."""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not FOLDER.is_dir(), reason=f"{FOLDER} is not there: apt-get install dataset-fashion-mnist"
    ),
]

Pixels = NDArray[np.float32]
Labels = NDArray[np.int64]


def read(split: str) -> tuple[Pixels, Labels]:
    images = read_idx(FOLDER / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(FOLDER / f"{split}-labels-idx1-ubyte.gz")
    return images.reshape(len(images), -1) / np.float32(255), labels.astype(np.int64)


@pytest.fixture(scope="module")
def train() -> tuple[Pixels, Labels]:
    return read("train")


@pytest.fixture(scope="module")
def held_out() -> tuple[Pixels, Labels]:
    return read("t10k")


def test_images__are_the_published_ones(
    train: tuple[Pixels, Labels], held_out: tuple[Pixels, Labels]
) -> None:
    for (pixels, labels), n_images in ((train, 60_000), (held_out, 10_000)):
        assert pixels.shape == (n_images, 784)
        assert np.bincount(labels).tolist() == [n_images // 10] * 10
    # Known of the training images to whoever normalises them.
    assert train[0].mean(dtype=np.float64) == pytest.approx(0.2860, abs=5e-5)
    assert train[0].std(dtype=np.float64) == pytest.approx(0.3530, abs=5e-5)


def test_dataset__reads_the_installed_files(
    train: tuple[Pixels, Labels], held_out: tuple[Pixels, Labels], tmp_path: Path
) -> None:
    data = DATASETS["FashionMNIST"](data_dir=tmp_path, resolution=28)
    for split, (pixels, labels) in ((data.train_plain, train), (data.eval, held_out)):
        np.testing.assert_array_equal(split.labels, labels)
        found = split.source.read(range(len(labels)))
        np.testing.assert_array_equal(found.numpy().reshape(len(labels), -1) / np.float32(255), pixels)


def objective(fitted: LogisticRegression | satstore.LogisticProbe, x: Pixels, y: Labels, c: float) -> float:
    """½‖W‖² + C·Σ loss, in float64, from its definition."""
    logits = x.astype(np.float64) @ fitted.coef_.T + fitted.intercept_
    losses = -log_softmax(logits, axis=1)[np.arange(len(y)), y]
    return float(0.5 * np.square(fitted.coef_).sum() + c * losses.sum())


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_probe__of_raw_pixels_is_scikit_learns(
    train: tuple[Pixels, Labels], held_out: tuple[Pixels, Labels], c: float
) -> None:
    x, y = train[0][:N_TRAIN], train[1][:N_TRAIN]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        peer = LogisticRegression(C=c, tol=1e-4, max_iter=1000).fit(x.astype(np.float64), y)
    probe = satstore.LogisticProbe(C=c, tol=1e-4).fit(x, y)
    assert probe.converged_
    least = objective(peer, x, y, c)
    assert probe.objective_ == pytest.approx(objective(probe, x, y, c), rel=1e-5)
    # Both stop where no entry of the gradient passes tol, which leaves a little between them.
    assert 0.9 * least <= probe.objective_ <= 1.01 * least
    if c < 1:  # the more it is penalised, the better it is determined
        assert probe.objective_ == pytest.approx(least, rel=1e-5)
    assert abs(probe.score(*held_out) - peer.score(*held_out)) <= 1 / 360


def test_probe__of_all_raw_pixels_on_disk_is_as_good_as_is_known(
    train: tuple[Pixels, Labels], held_out: tuple[Pixels, Labels], tmp_path: Path
) -> None:
    stored = zarr.create_array(tmp_path / "pixels.zarr", data=train[0], chunks=(2000, 784))
    probe = satstore.LogisticProbe(tol=1e-3).fit(stored, train[1])
    assert probe.converged_
    assert probe.score(*held_out) >= 0.83


def test_spectra__of_images_are_numpys(train: tuple[Pixels, Labels]) -> None:
    moments = Moments()
    for batch in torch.from_numpy(train[0]).split(7_000):
        moments.update(batch)
    found = eigenvalues(moments.covariance().numpy())
    expected = np.linalg.eigvalsh(np.cov(train[0].astype(np.float64).T, bias=True))[::-1]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * expected[0])
    assert found.sum() == pytest.approx(train[0].astype(np.float64).var(axis=0).sum(), rel=1e-6)


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, 2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(144, 10),
    )


def make_loader(images: tuple[Pixels, Labels], n_images: int) -> "DataLoader[tuple[torch.Tensor, ...]]":
    pixels, labels = (torch.from_numpy(values[:n_images]) for values in images)
    return DataLoader(TensorDataset(pixels.view(-1, 1, 28, 28), labels), 100)


def train_net(net: nn.Module, loader: "DataLoader[tuple[torch.Tensor, ...]]") -> None:
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(2):
        for pixels, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(pixels), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def test_record__of_a_trained_net_stores_a_plain_forward_pass(
    train: tuple[Pixels, Labels], held_out: tuple[Pixels, Labels], tmp_path: Path
) -> None:
    loaders = {"train": make_loader(train, 4000), "eval": make_loader(held_out, 1500)}
    net = make_net()
    train_net(net, loaders["train"])
    run = satstore.record(net, loaders["train"], "real", loaders["eval"], pooling=["2"], logs_dir=tmp_path)
    assert run.layers == ["0", "3", "8"]
    outputs: dict[str, list[torch.Tensor]] = {}
    net.eval()
    for name in run.layers:
        hook = lambda _m, _i, output, name=name: outputs[name].append(output.detach())  # noqa: E731
        net.get_submodule(name).register_forward_hook(hook)
    for split, loader in loaders.items():
        outputs = {name: [] for name in run.layers}
        with torch.no_grad():
            logits = torch.cat([net(pixels) for pixels, _ in loader])
        labels = np.concatenate([part.numpy() for _, part in loader])
        assert np.mean(logits.argmax(1).numpy() == labels) > 0.7, "it has learned something"
        latents = run.latents("pool2", split)
        np.testing.assert_array_equal(latents.labels, labels)
        for name in run.layers:
            whole = torch.cat(outputs[name])
            pooled = nn.functional.adaptive_avg_pool2d(whole, 2) if whole.ndim == 4 else whole
            np.testing.assert_allclose(latents[name].numpy(), pooled.numpy(), rtol=2e-3, atol=1e-3)
            samples = whole.double().movedim(1, -1).flatten(0, -2).numpy()
            expected = np.linalg.eigvalsh(np.cov(samples.T, bias=True))[::-1]
            np.testing.assert_allclose(
                run.spectra(split)[name][0], expected, rtol=1e-4, atol=1e-6 * expected[0]
            )
