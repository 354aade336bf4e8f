"""Stages on a small real run: what is done again, what is kept, and what is refused."""

import io
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import SMALL, WORKS_S, satstore
from held import PEAKS, Held
from rich.console import Console
from small_data import write_folder

from satstore.cli.layer_table import print_layers
from satstore.config.grid import read_config
from satstore.config.latent_keys import LatentsKey
from satstore.errors import ConfigError, CorruptError, MemoryLimitError, MissingStageError, SatstoreError
from satstore.registry import STAGES
from satstore.runs.logs_folder import open_run
from satstore.runs.run import Run
from satstore.runs.verify import Verification
from satstore.stages.extract import stage as extract_stage
from satstore.stages.pipeline import make_runs, make_tasks, run_experiments, run_stages
from satstore.storage.zarr import AnalysisStore, LatentWriter, layout
from satstore.training import loop, run_model, session_data

DIGITS: dict[str, Any] = {**SMALL, "dataset": "FewDigits", "plugins": ["few_digits"], "resolution": 16}
"""800 digits to train on, 200 to evaluate."""


AMPLE_BYTES = 2**34
"""A memory limit for tests of something else: it counts what earlier tests have left in the process, too."""


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("logs")
    run_experiments(DIGITS, "res", ["train"], logs_dir=logs, memory_limit=AMPLE_BYTES)
    return logs


@pytest.fixture
def trained(logs: Path, tmp_path: Path) -> Run:
    """A copy of a trained run, for a test of its own."""
    shutil.copytree(logs / "res", tmp_path / "res")
    return open_run("res", tmp_path)


def start(run: Run, stage: str, **parameters: Any) -> Run:
    """Run one stage as `satstore <stage> --run` does, and return the run anew."""
    if "memory_limit" in STAGES[stage].parameters.model_fields:
        parameters = {"memory_limit": AMPLE_BYTES, **parameters}
    [outcome] = run_stages([Run(run.path)], make_tasks([stage], parameters), with_needs=False)
    if outcome.error is not None:
        raise outcome.error
    return Run(run.path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_train__ends_with_the_latents(trained: Run) -> None:
    assert trained.statuses() | {"train": "done", "extract": "done", "probe": "missing"} == trained.statuses()
    latents = trained.latents("pool4", "eval")
    assert list(latents) == trained.layers
    assert latents["features.0"].shape == (200, 32, 4, 4)


def test_train__overwrite_lets_go_of_all_that_came_of_the_old_weights(trained: Run) -> None:
    start(trained, "saturation")
    start(trained, "probe")
    before = Run(trained.path)
    after = start(trained, "train", overwrite=True, latents=False)

    assert before.read_file("checkpoint.pt") == after.read_file("checkpoint.pt"), (
        "the same seed, the same bits"
    )
    assert not after.latents_path.exists()
    assert not after.has_file("saturation.csv")
    assert not after.has_file("probe-pool4.csv")
    assert after.statuses()["probe"] == "missing"
    assert after.manifest.summary.epochs_done == 1


def test_extract__several_poolings_at_once_are_what_they_are_alone(trained: Run) -> None:
    both = start(trained, "extract", pooling=["2", "full"])
    assert set(both.manifest.latents) == {LatentsKey("full"), LatentsKey("2"), LatentsKey("4")}
    assert both.latents("full", "train")["features.0"].shape == (800, 32, 16, 16)
    together = {split: both.latents("pool2", split)["features.4"].numpy() for split in ("train", "eval")}
    alone = start(trained, "extract", pooling=["2"], overwrite=True)
    for split, latents in together.items():
        np.testing.assert_array_equal(alone.latents("pool2", split)["features.4"].numpy(), latents)


def test_extract__memory_limit_bounds_the_shards(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MemoryLimitError, match=r"the memory limit leaves 0 MiB .* raise --memory-limit by"):
        start(trained, "extract", memory_limit=1000, overwrite=True)
    large = start(trained, "extract").latents("pool4", "train")["features.4"]
    values = large.numpy()
    monkeypatch.setattr(layout, "SHARD_BYTES", 2**19)
    small = start(trained, "extract", overwrite=True).latents("pool4", "train")["features.4"]
    assert small.array.shards is not None
    assert small.array.shards[0] < 800 <= (large.array.shards or (0,))[0]
    np.testing.assert_array_equal(small.numpy(), values)
    np.testing.assert_array_equal(small.std, large.std)


def test_extract__killed_goes_on_at_the_last_shard_and_ends_bit_equal(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In shards of 256, batches of 100 would not fit: those of the undisturbed run are computed."""
    trained = Run(trained.path, config=trained.config.model_copy(update={"batch_size": 100}))
    monkeypatch.setattr(layout, "SHARD_BYTES", 2**20)
    monkeypatch.setattr(Run, "config", trained.config)
    start(trained, "extract", overwrite=True)
    whole = contents(trained.latents_path)
    append, left = LatentWriter.append, [7]
    forwarded: list[int] = []

    def die(self: LatentWriter, latents: Any, start: int) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        forwarded.append(start)
        append(self, latents, start)

    monkeypatch.setattr(LatentWriter, "append", die)
    with pytest.raises(KeyboardInterrupt):
        start(trained, "extract", overwrite=True)
    killed = Run(trained.path)
    assert killed.status("extract") == "cancelled"
    assert not any(killed.manifest.latents[LatentsKey("4")].layers.values())
    committed = killed.commits.read("latents.zarr").n_rows["pool4/train/features.0"]
    assert committed == 512

    left[0] = 99
    forwarded.clear()
    done = start(killed, "extract")
    assert forwarded[0] == 500, "the batch that holds the first missing row, and nothing before it"
    assert contents(done.latents_path) == whole


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are known on Linux")
def test_extract__killed_for_good_goes_on_and_keeps_to_the_memory_limit(tmp_path: Path) -> None:
    """The process itself is killed, twice, while it writes a shard."""
    [run] = run_experiments(
        {**SMALL, "plugins": ["held"]}, "res", ["train"], logs_dir=tmp_path, latents=False
    )
    words = ["extract", "--run", run.name, "--logs-dir", tmp_path, "-d", "full"]
    words += ["--memory-limit", "2500MiB", "--no-check"]

    def n_rows() -> int:
        return Run(run.path).commits.read("latents.zarr").n_rows.get("full/train/features.0", 0)

    committed = [0]
    for shard in (1, 2):
        at = f"shard train/features.0/{shard}"
        with Held(tmp_path / f"held{shard}", at, *words) as held:
            held.wait_for(at)
            held.send(signal.SIGKILL)
            held.end()
        committed.append(n_rows())
        record = Run(run.path).manifest.latents.get(LatentsKey("full"))
        assert record is None or not any(record.layers.values())
    assert 0 < committed[1] < committed[2] < 1437
    assert committed[2] == 2 * committed[1], "of whole shards"

    with Held(tmp_path / "peaks", PEAKS, *words) as held:
        said, told = held.end(WORKS_S)
    assert held.process.returncode == 0, said
    assert 0 < max(int(line.removeprefix("peak ")) for line in told) < 2500 * 2**20
    done = Run(run.path)
    pieces = contents(done.latents_path / "full")
    # In as large shards, whatever this process holds by now.
    start(done, "extract", pooling=["full"], overwrite=True, memory_limit=2**33)
    assert contents(done.latents_path / "full") == pieces


@pytest.mark.parametrize("bits", [10, pytest.param(4, marks=pytest.mark.long)])
def test_extract__what_float16_would_ruin_is_float32_beside_layers_that_are_not(
    trained: Run, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    load = run_model.load_model

    def load_shifted(*arguments: Any) -> Any:
        model = load(*arguments)
        dict(model.named_modules())["features.4"].bias.data += 1e4
        return model

    monkeypatch.setattr(run_model, "load_model", load_shifted)
    monkeypatch.setattr(layout, "SHARD_BYTES", 2**19)
    run = start(trained, "extract", overwrite=True, mantissa_bits=bits)
    latents = run.latents("pool4", "train")
    assert latents["features.0"].array.dtype == np.float16
    shifted = latents["features.4"]
    assert shifted.array.dtype == np.float32
    assert len(list((run.path / "latents.zarr/pool4/train/features.4/latent/c").iterdir())) > 1
    data = session_data.load_data(run.config, run.manifest.dataset)
    model = load_shifted(run, len(data.classes), torch.device("cpu"), None)
    outputs: list[torch.Tensor] = []
    dict(model.named_modules())["features.4"].register_forward_hook(lambda *parts: outputs.append(parts[2]))
    with torch.inference_mode():
        for row in range(0, 800, run.config.batch_size):
            images, _ = data.train_plain.__getitems__(range(row, min(800, row + run.config.batch_size)))
            model.eval()(images.contiguous(memory_format=torch.channels_last))
    exact = torch.nn.functional.adaptive_avg_pool2d(torch.cat(outputs), 4).double().numpy()
    error = np.abs(shifted.numpy() - exact).max(axis=0)
    assert (error <= np.ptp(exact, axis=0) / 2 ** (min(bits, 8) + 1)).all()
    assert [f for f in Verification(run).findings() if f.is_wrong] == []

    whole = contents(run.path / "latents.zarr")
    (run.path / "latents.zarr/pool4/train/features.4/latent/c/1/0/0/0").unlink()
    mended = start(run, "extract")
    assert contents(mended.path / "latents.zarr") == whole


def files_of(run: Run, layer: str) -> list[Path]:
    folder = run.latents_path / f"pool4/train/{layer}/latent/c"
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "how",
    [
        "flip",
        "metadata",
        *(pytest.param(how, marks=pytest.mark.long) for how in ("delete", "truncate", "swap", "label")),
    ],
)
def test_extract__mends_only_what_is_bad(trained: Run, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(layout, "SHARD_BYTES", 2**20)
    trained = start(trained, "extract", overwrite=True)
    whole, record = contents(trained.latents_path), trained.manifest.latents[LatentsKey("4")]
    first, second = files_of(trained, "features.4")[1:3]
    bad = {first}
    content = first.read_bytes()
    if how == "flip":
        first.write_bytes(content[:999] + bytes([content[999] ^ 16]) + content[1000:])
    elif how == "delete":
        first.unlink()
    elif how == "truncate":
        first.write_bytes(content[:-7])
    elif how == "swap":
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
        bad = {first, second}
    else:
        metadata = trained.latents_path / "pool4/train/features.4/latent/zarr.json"
        label = trained.latents_path / "pool4/train/label/c/0"
        bad = {metadata if how == "metadata" else label}
        label.unlink() if how == "label" else metadata.write_text(metadata.read_text().replace("800", "799"))
    times = {p: p.stat().st_mtime_ns for p in trained.latents_path.rglob("*") if p.is_file() and p not in bad}
    forwarded: list[int] = []
    append = LatentWriter.append

    def count(self: LatentWriter, latents: Any, start: int) -> None:
        forwarded.append(start)
        assert list(latents[LatentsKey("4")]) == ["features.4"]
        append(self, latents, start)

    monkeypatch.setattr(LatentWriter, "append", count)
    mended = start(trained, "extract")
    assert contents(mended.latents_path) == whole
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert mended.manifest.latents[LatentsKey("4")] == record
    assert len(forwarded) == (0 if how in ("metadata", "label") else 2 * len(bad)), (
        "batches of 128, shards of 256"
    )
    assert extract_stage.plan_extraction(mended, extract_stage.ExtractParameters()).missing == []


def test_extract__adds_layers_and_splits_to_what_is_there(trained: Run) -> None:
    some = start(trained, "extract", pooling=["1"], layers="features", exclude="0$", splits=["train"])
    assert {k: list(v) for k, v in some.manifest.latents[LatentsKey("1")].layers.items()} == {
        "train": ["features.4", "features.8"],
        "eval": [],
    }
    assert list(some.latents("pool1", "train")) == ["features.4", "features.8"]
    digests = some.manifest.latents[LatentsKey("1")].layers["train"]
    whole = start(trained, "extract", pooling=["1"])
    assert list(whole.latents("pool1", "train")) == list(whole.latents("pool1", "eval")) == trained.layers
    assert whole.manifest.latents[LatentsKey("1")].layers["train"].items() >= digests.items()


def test_extract__refuses_layers_and_roundings_that_are_not_there(trained: Run) -> None:
    with pytest.raises(
        ConfigError, match=r"no layer left by --layers 'feature\.4'; did you mean 'features\.4'"
    ):
        start(trained, "extract", layers="feature.4")
    with pytest.raises(ConfigError, match=r"--exclude '\(' is no regular expression"):
        start(trained, "extract", exclude="(")
    with pytest.raises(ConfigError, match=r"none of the layers classifier\.2, .* has positions"):
        start(trained, "extract", pooling=["pixelwise"], layers="classifier")
    with pytest.raises(ConfigError, match=r"have 10 mantissa bits, not the 5 asked for; .*--overwrite"):
        start(trained, "extract", mantissa_bits=5)
    rounded = start(trained, "extract", mantissa_bits=5, overwrite=True)
    assert rounded.manifest.latents[LatentsKey("4")].mantissa_bits == 5
    assert extract_stage.plan_extraction(rounded, extract_stage.ExtractParameters()).missing == [], (
        "what is stored will do"
    )
    bits = rounded.latents("pool4", "train")["features.0"].numpy().view(np.uint16)
    assert not (bits & 0b11111).any()


def test_probe__fits_a_layer_once_and_again_when_its_latents_change(trained: Run) -> None:
    first = start(trained, "probe").read_file("probe-pool4.csv")
    assert STAGES["probe"].plan(Run(trained.path), STAGES["probe"].parameters()).missing == []
    assert start(trained, "probe").read_file("probe-pool4.csv") == first

    run = Run(trained.path)
    with run.lock():
        record = run.manifest.latents[LatentsKey("4")].model_copy(deep=True)
        record.layers["train"] = dict.fromkeys(record.layers["train"], "0" * 64)
        run.commit(change=lambda manifest: manifest.latents.update({LatentsKey("4"): record}))
    plan = STAGES["probe"].plan(Run(trained.path), STAGES["probe"].parameters())
    assert len(plan.missing) == len(run.layers)


def test_probe__that_stops_early_says_so(trained: Run) -> None:
    run = start(trained, "probe", max_iter=1)
    table = run.table("probe-pool4").set_index("layer")
    assert not table.loc["features.0", "converged"]
    assert any("layer features.0 at pool4 did not converge" in warning for warning in run.manifest.warnings)
    console = Console(width=200, file=io.StringIO())
    print_layers(console, run)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"features\.0 .*\d\.\d%\*", shown)
    assert "* did not converge" in shown


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_probe__a_flipped_bit_is_an_error_and_the_other_layers_go_on(trained: Run, workers: int) -> None:
    shard = next(
        path
        for path in (trained.latents_path / "pool4/train/features.4/latent/c").rglob("*")
        if path.is_file()
    )
    whole = shard.read_bytes()
    shard.write_bytes(whole[:999] + bytes([whole[999] ^ 16]) + whole[1000:])
    with pytest.raises(
        CorruptError,
        match=r"features\.4.* is not what was committed: its content changed; "
        r".*satstore extract --run .* --overwrite$",
    ):
        start(trained, "probe", workers=workers)
    run = Run(trained.path)
    others = [layer for layer in run.layers if layer != "features.4"]
    assert list(run.table("probe-pool4")["layer"]) == others
    assert run.status("probe") == "failed"

    start(trained, "extract", overwrite=True)
    assert shard.read_bytes() == whole
    assert list(start(trained, "probe").table("probe-pool4")["layer"]) == run.layers


def test_probe__confusion_matrices_add_up_to_the_accuracy(trained: Run) -> None:
    run = start(trained, "probe")
    table = run.table("probe-pool4").set_index("layer")
    for layer in run.layers:
        confusion = AnalysisStore(run.analysis_path).probe("pool4", layer)["confusion"]
        np.testing.assert_array_equal(confusion.sum(1), np.bincount(run.latents("pool4", "eval").labels))
        assert np.trace(confusion) / confusion.sum() == pytest.approx(
            table.loc[layer, "eval_accuracy"], abs=1e-12
        )


def test_saturation__keeps_the_rows_of_other_deltas(trained: Run) -> None:
    start(trained, "saturation")
    start(trained, "saturation", delta=[0.5, 0.9])
    run = start(trained, "saturation", delta=[0.9], definition="delve")
    table = run.table("saturation")
    found = table.groupby(["delta", "definition"]).size()
    assert list(found.index) == [(0.5, "exact"), (0.9, "delve"), (0.9, "exact"), (0.99, "exact")]
    assert found.nunique() == 1
    spectra = AnalysisStore(run.analysis_path).spectra("eval")
    rows = table[(table["split"] == "eval") & (table["delta"] == 0.9)].set_index(["definition", "layer"])
    for layer, [spectrum] in spectra.items():
        shares = np.cumsum(spectrum) / spectrum.sum()
        assert rows.loc[("exact", layer), "intrinsic_dimension"] == 1 + (shares < 0.9).sum()
        assert rows.loc[("delve", layer), "intrinsic_dimension"] == (shares < 0.9).sum()


def test_run_stage__with_a_run_names_the_missing_stage(trained: Run) -> None:
    with pytest.raises(MissingStageError, match=rf"run: satstore extract --run {trained.name} -d 3$"):
        start(trained, "probe", pooling=["3"])


def test_run_stages__one_failed_experiment_does_not_stop_the_next(tmp_path: Path) -> None:
    configs = read_config({**DIGITS, "batch_size": [799, 128]})
    runs = make_runs(configs, "res", tmp_path)
    outcomes = run_stages(runs, make_tasks(["train", "saturation"], {"latents": False}), with_needs=True)

    assert [(outcome.stage, outcome.result) for outcome in outcomes] == [
        ("train", "failed"),
        ("train", "done"),
        ("saturation", "done"),
    ]
    assert "batch of one" in str(outcomes[0].error)
    with pytest.raises(SatstoreError, match="batch of one"):
        run_experiments(
            {**DIGITS, "batch_size": [799, 128]}, "res", ["train"], logs_dir=tmp_path, latents=False
        )


def test_run_stages__an_unforeseen_error_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = make_runs(read_config({**DIGITS, "model": ["vgg6_S", "vgg5_S"]}), "res", tmp_path)
    build = loop.initialize_model

    def fail_once(config: Any, *rest: Any) -> Any:
        if config.model == "vgg6_S":
            raise RuntimeError("cuDNN says no")
        return build(config, *rest)

    monkeypatch.setattr(loop, "initialize_model", fail_once)
    outcomes = run_stages(runs, make_tasks(["train"], {"latents": False}), with_needs=True)
    assert [outcome.result for outcome in outcomes] == ["failed", "done"]
    assert f"{runs[0].name}: train failed: RuntimeError: cuDNN says no" in str(outcomes[0].error)
    assert runs[0].status("train") == "failed"


def test_extract__writes_again_what_was_deleted_or_truncated(trained: Run) -> None:
    whole = contents(trained.latents_path / "pool4")
    shutil.rmtree(trained.latents_path)
    with pytest.raises(MissingStageError, match=rf"run: satstore extract --run {trained.name} -d 4"):
        start(trained, "probe", pooling=["4"])
    start(trained, "extract")
    assert contents(trained.latents_path / "pool4") == whole

    shard = next(
        p for p in (trained.latents_path / "pool4/eval/features.0/latent/c").rglob("*") if p.is_file()
    )
    shard.write_bytes(b"xx")
    start(trained, "extract")
    assert contents(trained.latents_path / "pool4") == whole


@pytest.mark.parametrize("damage", ["delete", pytest.param("truncate", marks=pytest.mark.long)])
def test_train__a_lost_checkpoint_names_the_command_that_mends_it(trained: Run, damage: str) -> None:
    checkpoint = trained.path / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    checkpoint.unlink() if damage == "delete" else checkpoint.write_bytes(whole[:1000])
    for stage in ("train", "extract"):
        with pytest.raises(
            CorruptError, match=rf"restore it from a copy; satstore verify {trained.name} says"
        ):
            start(trained, stage, pooling=["2"])
    start(trained, "train", overwrite=True)
    assert checkpoint.read_bytes() == whole


def test_saturation__lost_spectra_and_tables_name_the_command(trained: Run) -> None:
    start(trained, "saturation")
    (trained.path / "saturation.csv").write_bytes(b"")
    with pytest.raises(CorruptError, match=rf"satstore saturation --run {trained.name} --overwrite"):
        start(trained, "saturation")
    assert len(start(trained, "saturation", overwrite=True).table("saturation"))
    shutil.rmtree(trained.analysis_path)
    with pytest.raises(CorruptError, match=rf"restore it from a copy; satstore verify {trained.name} says"):
        Run(trained.path).saturation(delta=0.9)
    with pytest.raises(ConfigError, match="no split named 'test'"):
        Run(trained.path).saturation(split="test")


def test_run_experiments__repeats_from_an_experiments_own_config(trained: Run, tmp_path: Path) -> None:
    [again] = run_experiments(
        trained.path / "config.json", "again", ["train"], logs_dir=tmp_path, latents=False
    )
    again.reload()
    assert again.experiment == trained.experiment
    assert again.read_file("checkpoint.pt") == trained.read_file("checkpoint.pt")


def test_run_experiments__refuses_a_parameter_of_no_stage(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'poling' is no parameter of the stages train"):
        run_experiments(DIGITS, "res", ["train"], logs_dir=tmp_path, poling=["4"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", list(STAGES))
def test_stages__have_what_commands_and_forms_need(name: str) -> None:
    stage = STAGES[name]
    assert stage.name == name
    assert stage.description
    assert all(need in STAGES for need in stage.needs)
    assert stage.parameters() == stage.parameters.model_validate_json(stage.parameters().model_dump_json())
    for field, info in stage.parameters.model_fields.items():
        assert info.description or field in ("device", "pooling"), field


def test_layers__filter_is_kept_everywhere(tmp_path: Path) -> None:
    config = {**DIGITS, "layers": "^features", "exclude_layers": r"\.0$"}
    [run] = run_experiments(config, "res", ["train", "saturation", "probe"], logs_dir=tmp_path)
    run.reload()
    assert run.layers
    assert all(layer.startswith("features.") and layer != "features.0" for layer in run.layers)
    assert list(run.latents("pool4", "train")) == run.layers == list(run.table("probe-pool4")["layer"])
    assert extract_stage.plan_extraction(run, extract_stage.ExtractParameters()).missing == []


def test_receptive_field__needs_no_training_and_notes_the_border_layer(tmp_path: Path) -> None:
    [run] = run_experiments({**SMALL, "model": "vgg11"}, "res", ["receptive-field"], logs_dir=tmp_path)
    run.reload()
    table = run.table("receptive_field")
    assert run.statuses()["train"] == "missing"
    assert list(table["receptive_field_max"])[:8] == [3, 8, 18, 26, 46, 62, 102, 134]
    assert run.manifest.summary.border_layer == table["layer"][5] == "features.18"
    assert run.manifest.summary.strict_border_layer == "features.18"
    before = run.read_file("receptive_field.csv")
    [again] = run_experiments(
        {**SMALL, "model": "vgg11"}, "res", ["receptive-field"], logs_dir=tmp_path, overwrite=True
    )
    assert again.read_file("receptive_field.csv") == before


def test_receptive_field__has_the_layers_that_are_recorded(trained: Run) -> None:
    start(trained, "receptive-field")
    start(trained, "saturation")
    trained.reload()
    assert list(trained.table("receptive_field")["layer"]) == trained.layers
    assert trained.manifest.summary.border_layer is None, "a VGG7 sees 18 px at most"
    axes = trained.plot().axes[0]
    assert "border layer" not in [line.get_label() for line in axes.lines]


def test_receptive_field__border_layer_is_drawn_and_shown(demo_logs: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_logs / "demo", tmp_path / "demo")
    assert satstore("receptive-field", "--run", "demo", "--logs-dir", tmp_path).returncode == 0
    shown = satstore("show", "demo", "--logs-dir", tmp_path).stdout
    assert "border layer at 32 px: features.18 (strict: features.18)" in shown
    [manifest] = tmp_path.glob("demo/*/manifest.json")
    [line] = [
        line for line in Run(manifest.parent).plot().axes[0].lines if line.get_label() == "border layer"
    ]
    assert list(line.get_xdata()) == [5, 5]


def test_train__leaves_corrupt_images_out_and_extracts_the_same_ones(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "insects")
    (root / "train" / "bee" / "1.jpg").write_text("no image")
    config = {**DIGITS, "model": "vgg5_S", "dataset": f"ImageFolder:{root}", "batch_size": 7, "workers": 0}
    stages = ["train", "extract", "probe"]
    with pytest.raises(CorruptError, match=re.escape(str(root / "train" / "bee" / "1.jpg"))):
        run_experiments(config, "res", stages, logs_dir=tmp_path)
    [run] = run_experiments({**config, "on_corrupt": "skip"}, "skip", stages, logs_dir=tmp_path)
    run = Run(run.path)
    assert run.manifest.dataset is not None
    assert run.manifest.dataset.skipped == {"train": ["bee/1.jpg"], "eval": []}
    assert run.manifest.dataset.n_train == 14
    assert "train: 1 corrupt train images are left out: bee/1.jpg" in run.manifest.warnings
    latents = run.latents("pool4", "train")
    assert latents.labels.tolist() == [0] * 5 + [1] * 4 + [2] * 5
    assert run.table("probe-pool4")["eval_accuracy"].notna().all()
    # Another image that gets corrupt later is an error, with its name.
    (root / "train" / "ant" / "0.png").write_text("no image")
    with pytest.raises(CorruptError, match="was trained on other data than"):
        run_experiments(
            {**config, "on_corrupt": "skip"}, "skip", ["extract"], logs_dir=tmp_path, pooling=["2"]
        )
