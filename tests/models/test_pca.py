"""VGGs that learn projections, against NumPy."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from satstore.models.pca import PCAProjection
from satstore.registry import MODELS


def correlated(n_samples: int) -> torch.Tensor:
    """Return maps (n, 6, 4, 4) whose channels have two large directions and a mean."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.randn(2, 6, generator=generator)
    factors = torch.randn(n_samples, 4, 4, 2, generator=generator)
    noise = 0.01 * torch.randn(n_samples, 4, 4, 6, generator=generator)
    return (factors @ axes + noise + torch.arange(6.0)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("centred", [False, True])
def test_projection__is_numpys(centred: bool) -> None:
    layer = PCAProjection(6, 0.99, centred).train()
    maps = correlated(20)
    for batch in maps.split(7):
        assert torch.equal(layer(batch), batch), "in training, all passes"
    layer.eval()
    samples = maps.double().permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    mean = samples.mean(0) if centred else np.zeros(6)
    values, vectors = np.linalg.eigh((samples - mean).T @ (samples - mean) / len(samples))
    shares = np.cumsum(values[::-1]) / values.sum()
    k = int((shares < 0.99).sum()) + 1
    basis = vectors[:, ::-1][:, :k]
    assert k < 6
    expected = mean + (samples - mean) @ basis @ basis.T
    found = layer(maps).permute(0, 2, 3, 1).reshape(-1, 6)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert float(layer.n_samples) == 0, "the next pass begins anew"


def test_projection__before_training_passes_all() -> None:
    maps = correlated(2)
    torch.testing.assert_close(PCAProjection(6, 0.5, True).eval()(maps), maps)


def test_vgg13pca__learns_in_training_and_survives_a_checkpoint() -> None:
    torch.manual_seed(0)
    model = MODELS["vgg13PCA50"](num_classes=3)
    plain = MODELS["vgg13"](num_classes=3)
    projections = [m for m in model.modules() if isinstance(m, PCAProjection)]
    assert len(projections) == 10 + 1
    weights = {k: v for k, v in model.state_dict().items() if ".projection" not in k}
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())
    images = torch.randn(4, 3, 32, 32)
    model.train()(images)
    logits = model.eval()(images)
    ranks = [int(torch.linalg.matrix_rank(p.projection)) for p in projections]
    assert all(0 < rank < len(p.mean) for rank, p in zip(ranks, projections, strict=True))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = MODELS["vgg13PCA50"](num_classes=3)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.eval()(images), logits)
    assert weights.keys() < other.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "deltas"),
    [("vgg13PCA", (0.999, 0.99)), ("vgg13PCA98", (0.98, 0.98)), ("vgg13PCA20", (0.2, 0.2))],
)
def test_vgg13pca__has_the_deltas_of_its_name(name: str, deltas: tuple[float, float]) -> None:
    with torch.device("meta"):
        model = MODELS[name](num_classes=3)
    layers = list(model.features) + list(model.classifier)
    assert {m.delta for m in model.features if isinstance(m, PCAProjection)} == {deltas[0]}
    assert {m.delta for m in model.classifier if isinstance(m, PCAProjection)} == {deltas[1]}
    for place, layer in enumerate(layers):
        if isinstance(layer, PCAProjection):
            assert isinstance(layers[place - 1], nn.Conv2d | nn.Linear)
    assert not any(m.centred for m in layers if isinstance(m, PCAProjection))
