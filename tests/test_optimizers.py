"""The optimizers, by their settings and by what they do to a small model."""

from pathlib import Path

import pytest
import torch
from torch import nn

from satstore.registry import OPTIMIZERS


class Training:
    """A small model trained on a few samples."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.labels = torch.arange(30) % 3
        self.inputs = torch.randn(30, 4)
        self.inputs[:, :3] += 2 * torch.eye(3)[self.labels]
        self.model = nn.Linear(4, 3)
        self.optimizer, self.scheduler = OPTIMIZERS[name](self.model)
        self.rates: list[float] = []
        self.losses: list[float] = []

    def run(self, n_epochs: int) -> None:
        for _ in range(n_epochs):
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(self.inputs), self.labels)
            loss.backward()
            self.losses.append(loss.item())
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()

    def parts(self) -> list[nn.Module]:
        return [part for part in (self.model, self.optimizer, self.scheduler) if part is not None]


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "noopt"])
def test_optimizer__trains(name: str) -> None:
    training = Training(name)
    assert len(training.optimizer.param_groups[0]["params"]) == 2
    training.run(25)
    assert training.losses[-1] < training.losses[0]


def test_noopt__leaves_the_weights_as_they_are() -> None:
    training = Training("noopt")
    before = [parameter.clone() for parameter in training.model.parameters()]
    training.run(3)
    assert all(map(torch.equal, before, training.model.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer__resumes_from_its_state(name: str, tmp_path: Path) -> None:
    first = Training(name)
    first.run(11)
    torch.save([part.state_dict() for part in first.parts()], tmp_path / "state.pt")
    first.run(12)
    second = Training(name)
    states = torch.load(tmp_path / "state.pt", weights_only=True)
    for part, state in zip(second.parts(), states, strict=True):
        part.load_state_dict(state)
    second.run(12)
    assert second.losses == first.losses[11:]
    assert second.rates == first.rates[11:]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer__is_described(name: str) -> None:
    entry = OPTIMIZERS.entry(name)
    assert entry.family
    assert entry.description


@pytest.mark.parametrize(
    ("name", "step"),
    [("lrs", 10), ("lrs60", 20), ("lrs90", 30), ("lrs180", 50), ("lrs_imgnet", 10), ("lrs60_imgnet", 20)],
)
def test_lrs__divides_the_rate_by_ten_at_each_step(name: str, step: int) -> None:
    optimizer, scheduler = OPTIMIZERS[name](nn.Linear(2, 2))
    rates = []
    for _ in range(3 * step):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.1] * step + [0.01] * step + [0.001] * step)


def test_sgd__keeps_its_rate() -> None:
    training = Training("sgd")
    training.run(25)
    assert training.scheduler is None
    assert training.rates == [0.01] * 25


@pytest.mark.parametrize(
    ("name", "weight_decay"),
    [
        *((name, 5e-4) for name in ("lrs", "lrs60", "lrs90", "lrs180", "sgd")),
        *((name, 1e-4) for name in ("lrs_imgnet", "lrs60_imgnet")),
    ],
)
def test_sgd__has_momentum_and_weight_decay(name: str, weight_decay: float) -> None:
    optimizer, _ = OPTIMIZERS[name](nn.Linear(2, 2))
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.defaults["momentum"] == 0.9
    assert optimizer.defaults["weight_decay"] == weight_decay
    assert optimizer.defaults["nesterov"] is False


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("radam", torch.optim.RAdam)]
)
def test_adaptive__has_the_defaults_of_torch(name: str, kind: type[torch.optim.Optimizer]) -> None:
    model = nn.Linear(2, 2)
    optimizer, scheduler = OPTIMIZERS[name](model)
    assert type(optimizer) is kind
    assert optimizer.defaults == kind(model.parameters()).defaults
    assert scheduler is None
