"""VGGs that project their layers' outputs onto principal axes, which are learned in training."""

import torch
import torch.fx
from torch import Tensor, nn

from satstore.analysis.projection import decompose, project_onto
from satstore.models.vgg import VGG, vgg

torch.fx.wrap("project_onto")  # a step of its own in the model's graph


class PCAProjection(nn.Module):
    """Projects features onto the axes that explain a share of their variance.

    In training mode, features pass unchanged and their moments are summed. The switch to eval mode turns the
    sums into a projection and resets them; before the first, features pass unchanged.

    Parameters
    ----------
    delta
        Share of the variance to keep, in (0, 1].
    centred
        Whether variance is about the mean, which the projection keeps; otherwise it is about zero.

    Attributes
    ----------
    mean
        (feature,): the point that the projection keeps; zero unless ``centred``.
    """

    projection: Tensor
    mean: Tensor
    sums: Tensor
    products: Tensor
    n_samples: Tensor

    def __init__(self, n_features: int, delta: float, centred: bool) -> None:
        super().__init__()
        self.delta, self.centred = delta, centred
        self.register_buffer("projection", torch.eye(n_features))
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("sums", torch.zeros(n_features, dtype=torch.float64))
        self.register_buffer("products", torch.zeros(n_features, n_features, dtype=torch.float64))
        self.register_buffer("n_samples", torch.zeros((), dtype=torch.float64))

    def train(self, mode: bool = True) -> "PCAProjection":
        """Switch to training or eval mode; the latter turns the sums into a projection."""
        if self.training and not mode and not self.n_samples.is_meta and float(self.n_samples) > 0:
            self._make_projection()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, feature, …) of the same shape."""
        if self.training:
            self._add(x.detach())
            return x
        return project_onto(x, self.projection, self.mean)

    @torch.no_grad()
    def _add(self, x: Tensor) -> None:
        samples = x.transpose(0, 1).flatten(1).double()
        self.sums += samples.sum(1)
        self.products += samples @ samples.T
        self.n_samples += samples.shape[1]

    @torch.no_grad()
    def _make_projection(self) -> None:
        mean = self.sums / self.n_samples
        moments = self.products / self.n_samples
        if self.centred:
            moments = moments - torch.outer(mean, mean)
            self.mean.copy_(mean)
        basis = decompose(moments.cpu().numpy()).basis(self.delta)
        axes = torch.from_numpy(basis).to(self.projection.device)
        self.projection.copy_(axes @ axes.T)
        for buffer in (self.sums, self.products, self.n_samples):
            buffer.zero_()


def vgg_pca(
    plan: str,
    *,
    conv_delta: float = 0.999,
    linear_delta: float = 0.99,
    centred: bool = False,
    num_classes: int = 1000,
) -> VGG:
    """Build a VGG with projections after convs and the first Linear, which keep shares of the variance."""
    model = vgg(plan, num_classes=num_classes)
    features: list[nn.Module] = []
    for layer in model.features:
        features.append(layer)
        if isinstance(layer, nn.Conv2d):
            features.append(PCAProjection(layer.out_channels, conv_delta, centred))
    model.features = nn.Sequential(*features)
    classifier = list(model.classifier)
    first = next(place for place, layer in enumerate(classifier) if isinstance(layer, nn.Linear))
    n_hidden = classifier[first].out_features
    classifier.insert(first + 1, PCAProjection(int(n_hidden), linear_delta, centred))  # type: ignore[arg-type]
    model.classifier = nn.Sequential(*classifier)
    return model
