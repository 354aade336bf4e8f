"""What loaders may yield to `satstore.record`: tensors, tuples and mappings, with labels or without."""

import hashlib
from collections import UserDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import satstore
from satstore.errors import ConfigError
from satstore.runs.verify import Verification


class Encoder(nn.Module):
    """A model of token ids and weights of the tokens, which returns no logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.last = nn.Embedding(11, 6), nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, ids: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
        values = self.embed(ids)
        values = values if weights is None else values * weights[:, :, None]
        return {"features": self.last(torch.tanh(self.first(values.mean(1))))}


IDS = torch.randint(0, 11, (22, 7), generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.rand(22, 7, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(22) % 3


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder()


def loader_of(make: Callable[[slice], Any]) -> list[Any]:
    return [make(slice(start, min(start + 8, 22))) for start in range(0, 22, 8)]


def stored(run: satstore.Run) -> dict[str, bytes]:
    """Return the bytes of both stores by their paths."""
    paths = [path for store in ("latents.zarr", "analysis.zarr") for path in (run.path / store).rglob("*")]
    return {str(path.relative_to(run.path)): path.read_bytes() for path in paths if path.is_file()}


IDS_ALONE: dict[str, tuple[Callable[[slice], Any], Any]] = {
    "tensor and labels": (lambda s: (IDS[s], LABELS[s]), None),
    "list of three": (lambda s: [IDS[s], LABELS[s], "beyond"], None),
    "dict": (lambda s: {"ids": IDS[s], "labels": LABELS[s]}, None),
    "dict and labels": (lambda s: ({"ids": IDS[s]}, LABELS[s]), None),
    "mapping that is no dict": (lambda s: UserDict(ids=IDS[s], labels=LABELS[s]), None),
    "adapted to a tensor": (
        lambda s: {"x": {"deep": IDS[s]}, "y": LABELS[s].tolist()},
        lambda batch: (batch["x"]["deep"], batch["y"]),
    ),
    "adapted to a dict with labels": (
        lambda s: (LABELS[s], IDS[s]),
        lambda batch: {"labels": batch[0], "ids": batch[1]},
    ),
    "adapted to a place": (lambda s: (LABELS[s], IDS[s]), lambda batch: ((batch[1],), batch[0], None)),
}


def test_record__stores_the_same_of_the_same_data_in_any_form(encoder: Encoder, tmp_path: Path) -> None:
    found = {}
    for n, (name, (make, adapt)) in enumerate(IDS_ALONE.items()):
        logs = tmp_path / str(n)
        found[name] = stored(satstore.record(encoder, loader_of(make), "a", adapt=adapt, logs_dir=logs))
    assert len(found["dict"]) > 10
    for name, files in found.items():
        assert files == found["tensor and labels"], name


@pytest.mark.parametrize(
    ("make", "adapt"),
    [
        (lambda s: UserDict(weights=WEIGHTS[s], ids=IDS[s]), None),
        (lambda s: [{"ids": IDS[s], "weights": WEIGHTS[s], "labels": None}], None),
        (lambda s: (IDS[s], WEIGHTS[s]), lambda batch: (tuple(batch), None)),
    ],
    ids=["by keyword", "by keyword, in a list of one", "by place"],
)
def test_record__gives_the_model_several_inputs(
    encoder: Encoder, make: Callable[[slice], Any], adapt: Any, tmp_path: Path
) -> None:
    run = satstore.record(encoder, loader_of(make), "a", adapt=adapt, logs_dir=tmp_path)
    with torch.no_grad():
        expected = encoder(IDS, WEIGHTS)["features"]
    latents = run.latents("pool4", "eval")
    np.testing.assert_allclose(latents["last"].numpy(), expected.numpy(), rtol=2e-3, atol=1e-4)


def test_record__fingerprints_a_tensor_as_its_bytes_and_a_mapping_by_its_names_too(
    encoder: Encoder, tmp_path: Path
) -> None:
    plain = satstore.record(encoder, loader_of(IDS_ALONE["tensor and labels"][0]), "a", logs_dir=tmp_path)
    named = satstore.record(encoder, loader_of(IDS_ALONE["dict"][0]), "b", logs_dir=tmp_path)
    for run, name in ((plain, b""), (named, b"ids")):
        digest = hashlib.sha256()
        for part in loader_of(lambda s: s):
            digest.update(LABELS[part].numpy().tobytes() + name + IDS[part].numpy().tobytes())
        assert run.manifest.dataset is not None
        assert run.manifest.dataset.fingerprint == digest.hexdigest()


class OfOneChannel(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, (3, 5)))


class OfSound(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv1d(1, 5, 9, stride=4), nn.ReLU(), nn.Conv1d(5, 4, 3))


class OfSequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps, self.last = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, values: Tensor) -> Tensor:
        return self.last(self.steps(values)[0][:, -1])


KINDS: dict[str, tuple[type[nn.Module], tuple[int, ...], str]] = {
    "images of one channel, not square": (OfOneChannel, (1, 17, 40), "2"),
    "sound": (OfSound, (1, 600), "2"),
    "sequences": (OfSequences, (9, 3), "last"),
}


@pytest.mark.parametrize("name", KINDS)
def test_record__takes_data_that_are_no_square_photos(name: str, tmp_path: Path) -> None:
    kind, shape, layer = KINDS[name]
    torch.manual_seed(0)
    model, data = kind(), torch.randn(20, *shape)
    run = satstore.record(model, [data[:8], data[8:16], data[16:]], "a", pooling=["full"], logs_dir=tmp_path)
    outputs: list[Tensor] = []
    model.get_submodule(layer).register_forward_hook(lambda _m, _i, output: outputs.append(output.detach()))
    model(data)
    latents = run.latents("full", "train")[layer]
    np.testing.assert_allclose(latents.numpy(), outputs[0].numpy(), rtol=2e-3, atol=1e-3)
    assert run.status("receptive_field") == "missing"
    assert not run.manifest.warnings
    assert [f for f in Verification(run).findings() if f.is_wrong] == []


class Recurrent(nn.Module):
    """A GRU of padded sequences, which takes them by position."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.GRU(3, 5, batch_first=True)

    def forward(self, values: Tensor, scale: Tensor) -> Tensor:
        return self.steps(values * scale)[0]


def test_record__takes_sequences_with_a_mask_by_adapt(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, values, n_steps = Recurrent(), torch.randn(20, 9, 3), torch.arange(20) % 7 + 2
    kept = torch.arange(9) < n_steps[:, None]
    batches = [{"x": values[part], "n": n_steps[part]} for part in torch.arange(20).split(8)]
    run = satstore.record(
        model,
        batches,
        "a",
        modules="steps",
        tokens=["mean", "last"],
        adapt=lambda batch: (
            (batch["x"], torch.tensor(2.0)),
            None,
            torch.arange(9) < batch["n"][:, None],
        ),
        logs_dir=tmp_path,
    )
    with torch.no_grad():
        outputs = model.steps(2 * values)[0].double().numpy()
    means = np.stack([output[mask].mean(0) for output, mask in zip(outputs, kept.numpy(), strict=True)])
    last = outputs[np.arange(20), n_steps.numpy() - 1]
    for group, expected in (("mean", means), ("last", last)):
        found = run.latents(group, "train")["steps"].numpy()
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)


def test_record__takes_as_many_samples_for_spectra_as_it_is_told(encoder: Encoder, tmp_path: Path) -> None:
    run = satstore.record(encoder, loader_of(IDS_ALONE["dict"][0]), "a", max_samples=10, logs_dir=tmp_path)
    with torch.no_grad():
        values = encoder.first(encoder.embed(IDS[:10]).mean(1)).double().numpy()
    expected = np.linalg.eigvalsh(np.cov(values.T, bias=True))[::-1]
    np.testing.assert_allclose(run.spectra("train")["first"][0], expected, rtol=1e-4, atol=1e-9)
    assert len(run.latents("pool4", "train").labels) == 22


GOOD = {"ids": IDS[:4], "labels": LABELS[:4]}


@pytest.mark.parametrize(
    ("loader", "adapt", "message"),
    [
        (
            [{"text": ["a", "b"]}],
            None,
            r"batch 0 of loader is a dict of 'text': no tensor among its inputs; make tensors of it \(a",
        ),
        (
            [GOOD],
            lambda _: None,
            r"adapt returns NoneType for batch 0 of loader; expected inputs, \(inputs, labels\) or ",
        ),
        ([GOOD], lambda batch: batch["x"], r"adapt fails for batch 0 of loader, a dict .* \(KeyError: 'x'\)"),
        ([GOOD], lambda _: ("ids", None), r"adapt returns a tuple of 2 \(str, NoneType\) for batch 0"),
        ([(IDS[:0], LABELS[:0])], None, r"batch 0 of loader has a tensor of shape \(0, 7\) for inputs"),
        (
            [{"ids": IDS[:4], "tokens": 7}],
            None,
            r"forward pass of the loader's first batch, a dict of ids \(4, 7\) of torch.int64, fails "
            r"\(TypeError: .*'tokens'\); make it what the model takes .* or by adapt",
        ),
        (
            [((IDS[:4], WEIGHTS[:4]), LABELS[:4])],
            None,
            r"batch 0 of loader has a tuple of 2 \(Tensor, Tensor\) for inputs; .* take an adapt",
        ),
    ],
)
def test_record__says_what_it_can_not_take(
    encoder: Encoder, loader: list[Any], adapt: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        satstore.record(encoder, loader, "a", adapt=adapt, logs_dir=tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_record__takes_what_a_tokenizer_of_transformers_returns(encoder: Encoder, tmp_path: Path) -> None:
    from transformers import BatchEncoding

    def encode(part: slice) -> Mapping[str, Any]:
        return BatchEncoding({"ids": IDS[part], "labels": LABELS[part]})

    runs = [
        satstore.record(encoder, loader_of(make), "a", logs_dir=tmp_path / name)
        for name, make in (("encoded", encode), ("dict", IDS_ALONE["dict"][0]))
    ]
    assert stored(runs[0]) == stored(runs[1])
