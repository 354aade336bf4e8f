"""Evolution: weights that are kept, latents and probes of earlier epochs, from a config's latent_epochs."""

import io
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from command_line import SMALL, call
from rich.console import Console
from tiny import CONFIG as TINY
from torch import nn

from satstore.cli.layer_table import print_layers
from satstore.cli.show import summarize_layers
from satstore.config.grid import read_config
from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.errors import ConfigError, NotFoundError
from satstore.registry import MODELS
from satstore.reports.plots import plot_evolution, plot_layers
from satstore.runs.disk_usage import check_removable, measure_disk_usage
from satstore.runs.logs_folder import make_run
from satstore.runs.repair import extract_command, probe_command
from satstore.runs.run import Run
from satstore.runs.verify import Verification
from satstore.stages.extract import stage as extract_stage
from satstore.stages.pipeline import make_tasks, run_experiments, run_stages
from satstore.stages.probe import stage as probe_stage
from satstore.stages.probe.stage import ProbeParameters
from satstore.storage.zarr import AnalysisStore, LatentWriter, open_latents
from satstore.training import session_data

CONFIG = {
    **SMALL,
    "dataset": TINY["dataset"],
    "batch_size": TINY["batch_size"],
    "epoch": 3,
    "resolution": 16,
    "layers": r"features\.[04]|classifier\.6",
    "latent_epochs": [1, 0, 1],
}
EPOCHS = {LatentsKey("4"), LatentsKey("4", 0), LatentsKey("4", 1)}


@pytest.fixture(scope="module")
def evolved(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An experiment that was trained, extracted and probed at three epochs."""
    [run] = run_experiments(CONFIG, "res", logs_dir=tmp_path_factory.mktemp("evolved"))
    return Run(run.path)


@pytest.fixture
def run(evolved: Run, tmp_path: Path) -> Run:
    """A copy of it, to be changed."""
    path = tmp_path / evolved.run_id / evolved.experiment
    shutil.copytree(evolved.path, path)
    return Run(path)


def start(run: Run, stage: str, **parameters: Any) -> Run:
    [outcome] = run_stages([run], make_tasks([stage], parameters), with_needs=False)
    if outcome.error is not None:
        raise outcome.error
    return Run(run.path)


def call_on(run: Run, *words: object) -> tuple[int, str, str]:
    return call(*words, "--logs-dir", run.path.parents[1])


def weights_of(run: Run, name: str) -> dict[str, torch.Tensor]:
    content: dict[str, Any] = torch.load(io.BytesIO(run.read_file(name)), weights_only=True)
    weights: dict[str, torch.Tensor] = content["model"]
    return weights


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The config


def test_latent_epochs__are_one_list_that_no_digest_depends_on() -> None:
    [config] = read_config(CONFIG)
    [without] = read_config({**CONFIG, "latent_epochs": []})
    assert config.latent_epochs == (0, 1)
    assert config.digest == without.digest
    assert len(read_config({**CONFIG, "epoch": [3, 4], "latent_epochs": [0, 2]})) == 2


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ([0, 3], "'latent_epochs': 3 is past the last of 3 epochs, which is 2: they are counted from 0"),
        ([-1], "'latent_epochs.0': input should be greater than or equal to 0, found -1"),
        ([0, 1.5], "'latent_epochs.1': input should be a valid integer, found 1.5"),
        ([True], "'latent_epochs.0': input should be a valid integer, found True"),
        (1, "'latent_epochs' takes a list, found 1"),
    ],
)
def test_latent_epochs__what_is_no_epoch_is_refused(value: Any, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config({**CONFIG, "latent_epochs": value})
    assert str(caught.value) == line


# Training


def test_train__keeps_the_weights_after_the_epochs(evolved: Run, tmp_path: Path) -> None:
    """Those after epoch 0 are what a run of one epoch ends with."""
    kept = sorted(path.name for path in evolved.path.glob("*.pt"))
    assert kept == ["checkpoint-epoch0.pt", "checkpoint-epoch1.pt", "checkpoint.pt"]
    assert set(kept) <= evolved.manifest.files.keys()
    short = {**CONFIG, "epoch": 1, "latent_epochs": []}
    [other] = run_experiments(short, "short", ["train"], logs_dir=tmp_path, latents=False)
    expected, found = weights_of(other, "checkpoint.pt"), weights_of(evolved, "checkpoint-epoch0.pt")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not all(torch.equal(found[n], w) for n, w in weights_of(evolved, "checkpoint-epoch1.pt").items())


def test_train__overwrite_forgets_what_was_kept_and_follows_the_new_config(run: Run) -> None:
    [config] = read_config({**CONFIG, "latent_epochs": [1]})
    again = make_run(run.path.parents[1], run.run_id, config)
    again = start(again, "train", overwrite=True, pooling=["1"])
    assert sorted(path.name for path in run.path.glob("*.pt")) == ["checkpoint-epoch1.pt", "checkpoint.pt"]
    assert again.manifest.latents.keys() == {LatentsKey("1"), LatentsKey("1", 1)}
    assert again.read_file("checkpoint-epoch1.pt") == run.read_file("checkpoint-epoch1.pt")
    for content in (again.manifest.config, json.loads(again.read_file("config.json"))):
        assert content["latent_epochs"] == [1]


def test_train__stopped_early_warns_of_epochs_that_it_did_not_come_to(tmp_path: Path) -> None:
    config = {**CONFIG, "latent_epochs": [0, 2], "stop_at_accuracy": 0.01}
    [run] = run_experiments(config, "res", ["train"], logs_dir=tmp_path)
    run = Run(run.path)
    assert run.manifest.summary.epochs_done == 1
    assert run.manifest.warnings == ["train: no latents of epoch 3: training stopped early, after epoch 1"]
    assert [path.name for path in run.path.glob("*.pt")] == ["checkpoint.pt"], "epoch 0 is the last"
    assert run.manifest.latents.keys() == {LatentsKey("4")}
    assert len(run.latents("pool4", "eval", epoch=0).labels) == 20
    with pytest.raises(ConfigError, match=r"no epoch 3 of .*: its epochs are counted from 1 to 1$"):
        start(run, "extract", epoch=[2])


def test_train__epochs_that_are_past_and_were_not_kept_are_refused(run: Run) -> None:
    [config] = read_config({**CONFIG, "latent_epochs": [0, 1]})
    run.commit(change=lambda manifest: manifest.files.pop("checkpoint-epoch1.pt"))
    line = (
        f"{run.name} did not keep the weights after epoch 2 when trained (kept: 1); to have latents of them, "
        'train a config with "latent_epochs": [1], where they are counted from 0, under another run id, or '
        "this one with it and --overwrite"
    )
    opened = make_run(run.path.parents[1], run.run_id, config)
    for stage in ("train", "extract", "probe"):
        with pytest.raises(NotFoundError) as caught:
            start(opened, stage)
        assert str(caught.value) == line
    before = run.read_file("checkpoint.pt")
    opened.commit(change=lambda manifest: setattr(manifest.summary, "epochs_done", 2))
    with pytest.raises(NotFoundError, match="did not keep the weights after epoch 2 when trained"):
        start(opened, "train")
    assert Run(run.path).read_file("checkpoint.pt") == before, "refused before it trains"


# Latents


def test_extract__latents_of_an_epoch_are_those_of_its_weights(evolved: Run) -> None:
    """Against a plain forward hook in a model that has the kept weights."""
    model: nn.Module = MODELS[CONFIG["model"]](num_classes=3)
    data = session_data.load_data(evolved.config)
    stored = {epoch: evolved.latents("pool4", "eval", epoch) for epoch in (None, 0, 1, 2)}
    for epoch, name in ((0, "checkpoint-epoch0.pt"), (1, "checkpoint-epoch1.pt"), (2, "checkpoint.pt")):
        model.load_state_dict(weights_of(evolved, name))
        seen: dict[str, torch.Tensor] = {}
        hook = model.get_submodule("features.4").register_forward_hook(
            lambda _module, _inputs, output, seen=seen: seen.update(output=output)
        )
        with torch.no_grad():
            model.eval()(data.eval.__getitems__(range(len(data.eval)))[0])
        hook.remove()
        expected = nn.functional.adaptive_avg_pool2d(seen["output"], 4).numpy()
        found = stored[epoch]["features.4"].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(stored[epoch].labels, data.eval.labels)
    np.testing.assert_array_equal(stored[2]["features.4"].numpy(), stored[None]["features.4"].numpy())
    assert not np.allclose(stored[0]["features.4"].numpy(), stored[1]["features.4"].numpy(), atol=1e-3)


def test_extract__each_record_has_its_own_checkpoint(evolved: Run) -> None:
    names = {
        LatentsKey("4"): "checkpoint.pt",
        LatentsKey("4", 0): "checkpoint-epoch0.pt",
        LatentsKey("4", 1): "checkpoint-epoch1.pt",
    }
    assert evolved.manifest.latents.keys() == names.keys()
    for key, record in evolved.manifest.latents.items():
        assert record.checkpoint_sha256 == evolved.manifest.files[names[key]].sha256


def test_extract__writes_the_epochs_asked_for(run: Run) -> None:
    found = start(run, "extract", epoch=[1, 2], pooling=["1"], layers="features.0")
    assert found.manifest.latents.keys() - EPOCHS == {LatentsKey("1", 1), LatentsKey("1")}
    with pytest.raises(
        NotFoundError, match=r"no latents 'epochs/0/pool1' .* extract --run \S+ -d 1 --epoch 1$"
    ):
        found.latents("pool1", "train", epoch=0)


def test_store__opens_in_xarray_with_its_epochs(evolved: Run) -> None:
    store = open_latents(evolved.latents_path)
    assert (store.poolings, store.epochs) == (["pool4"], [0, 1])
    with xr.open_datatree(evolved.latents_path, engine="zarr", consolidated=False, chunks={}) as tree:
        for epoch in store.epochs:
            latent = tree[f"epochs/{epoch}/pool4/train/features.4/latent"]
            assert latent.dims == ("sample", "channel", "y", "x")
            found = store.split("pool4", "train", epoch)["features.4"]
            np.testing.assert_array_equal(latent, found.numpy())


def test_extract__killed_goes_on_and_ends_bit_equal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, record = contents(run.latents_path), Run(run.path).manifest.latents
    append, left = LatentWriter.append, [7]

    def die(self: LatentWriter, latents: Any, start: int) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        append(self, latents, start)

    monkeypatch.setattr(LatentWriter, "append", die)
    with pytest.raises(KeyboardInterrupt):  # in the second epoch of three: 5 batches each
        start(run, "extract", overwrite=True)
    killed = Run(run.path)
    assert any(killed.manifest.latents[LatentsKey("4")].layers["eval"].values()), "the last epoch is done"
    assert not any(killed.manifest.latents[LatentsKey("4", 0)].layers.values())
    assert extract_stage.plan_extraction(killed, extract_stage.ExtractParameters()).missing == [
        "pool4 of epoch 1 train",
        "pool4 of epoch 1 eval",
    ]
    left[0] = 99
    again = start(killed, "extract")
    assert left[0] == 99 - 5, "no other epoch is passed over"
    assert contents(run.latents_path) == whole
    assert again.manifest.latents == record


def test_extract__what_is_of_other_weights_is_written_again(run: Run) -> None:
    other = io.BytesIO()
    torch.save({"model": weights_of(run, "checkpoint.pt")}, other)
    run.commit({"checkpoint-epoch0.pt": other.getvalue()})
    assert [finding.what for finding in Verification(run).findings()] == [
        "epochs/0/pool4 is of another checkpoint than the run's"
    ]
    again = start(run, "extract")
    np.testing.assert_array_equal(
        again.latents("pool4", "train", 0)["features.0"].numpy(),
        again.latents("pool4", "train")["features.0"].numpy(),
    )
    assert list(Verification(again).findings()) == []
    assert probe_stage.plan_probes(again, ProbeParameters()).missing == [
        f"{layer} at epoch0-pool4" for layer in run.layers
    ]


# Probes


def test_probe__of_an_epoch_is_fitted_on_its_latents(evolved: Run) -> None:
    """The stored weights, applied with NumPy, have the accuracy that the table says."""
    for epoch in (0, 1):
        table = evolved.table(f"probe-epoch{epoch}-pool4").set_index("layer")
        assert list(table.index) == evolved.layers
        latents = evolved.latents("pool4", "eval", epoch)
        arrays = AnalysisStore(evolved.analysis_path).probe(f"epoch{epoch}-pool4", "features.4")
        rows = latents["features.4"].numpy().reshape(20, -1).astype(np.float64)
        predicted = (rows @ arrays["coef"].T + arrays["intercept"]).argmax(axis=1)
        accuracy = (predicted == latents.labels).mean()
        assert table.loc["features.4", "eval_accuracy"] == pytest.approx(accuracy)
        counts = evolved.confusion("features.4", f"epoch{epoch}-pool4").to_numpy()
        assert counts.trace() / counts.sum() == table.loc["features.4", "eval_accuracy"]


def test_probe_evolution__is_every_epochs_table(evolved: Run) -> None:
    found = evolved.probe_evolution()
    names = {0: "probe-epoch0-pool4", 1: "probe-epoch1-pool4", 2: "probe-pool4"}
    assert list(found.columns) == ["epoch", *evolved.table("probe-pool4").columns]
    assert found["epoch"].tolist() == [epoch for epoch in names for _ in evolved.layers]
    for epoch, name in names.items():
        rows = found[found["epoch"] == epoch].drop(columns="epoch").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, evolved.table(name))
    with pytest.raises(
        NotFoundError, match=r"no probes at 'pool2' yet; fit them with: satstore probe .* -d 2$"
    ):
        evolved.probe_evolution("pool2")


def test_probe_evolution__takes_tables_with_a_layer_that_has_no_probe(run: Run) -> None:
    table = run.table("probe-epoch0-pool4")
    table["error"] = ["values that are not finite", *[None] * (len(table) - 1)]
    run.commit({"probe-epoch0-pool4.csv": table.to_csv(index=False).encode()})
    assert run.probe_evolution()["error"].notna().sum() == 1


def test_probe__epochs_and_prefixes_have_tables_of_their_own(run: Run) -> None:
    before = run.manifest.probes.keys()
    found = start(run, "probe", epoch=[1], layers="classifier.6", prefix="P-x", C=0.1)
    assert found.manifest.probes.keys() - before == {ProbeKey(LatentsKey("4", 1), "P-x")}
    assert found.probe_evolution("pool4", "P-x")["epoch"].tolist() == [1]
    assert (
        probe_command(found, ProbeKey(LatentsKey("4", 1), "P-x"))
        == f"satstore probe --run {run.name} -d 4 --epoch 2 --prefix P-x"
    )


@pytest.mark.parametrize("prefix", ["epoch5", "P-epoch0"])
def test_probe__a_prefix_that_reads_as_an_epoch_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="does not end as tables of an earlier epoch begin"):
        make_tasks(["probe"], {"prefix": prefix})


def test_show_and_plot__are_of_the_last_epoch(evolved: Run) -> None:
    assert all(list(layer["probe_accuracy"]) == ["pool4"] for layer in summarize_layers(evolved))
    console = Console(width=200, record=True, file=io.StringIO())
    print_layers(console, evolved)
    assert console.export_text().count("probe pool4") == 1
    assert "epoch" not in console.export_text()
    labels = [line.get_label() for line in plot_layers(evolved).axes[0].lines]
    assert [label for label in labels if str(label).startswith("probe")] == ["probe accuracy (pool4)"]
    last = evolved.confusion("features.4", "pool4")
    pd.testing.assert_frame_equal(evolved.confusion("features.4"), last)


def test_plot_evolution__draws_each_layer_over_the_epochs(evolved: Run) -> None:
    probes, saturation = plot_evolution(evolved).axes
    table = evolved.probe_evolution().set_index(["layer", "epoch"])["eval_accuracy"]
    lines = {str(line.get_label()): line for line in probes.lines[:-1]}
    assert list(lines) == evolved.layers[:-1]
    for layer, line in lines.items():
        assert list(line.get_xdata()) == [1, 2, 3]
        assert list(line.get_ydata()) == table[layer].tolist()
    assert list(probes.lines[-1].get_ydata()) == evolved.table("metrics")["eval_accuracy"].tolist()
    found = evolved.saturation(split="train")
    for line in saturation.lines:
        expected = found.loc[found["layer"] == line.get_label(), "saturation"]
        np.testing.assert_allclose(line.get_ydata(), expected)


def test_plot_evolution__says_what_it_lacks(run: Run) -> None:
    code, out, _ = call_on(run, "plot", run.name, "--evolution")
    assert (code, out.strip()) == (0, str(run.path / "evolution.png"))
    run.commit(change=lambda manifest: (manifest.probes.clear(), manifest.files.pop("saturation.csv")))
    code, _, err = call_on(run, "plot", run.name, "--evolution")
    assert (code, err) == (
        1,
        f"satstore: {run.name} has nothing to draw yet; run: satstore saturation --run {run.name}\n",
    )


# The command line


FROM_1 = "expected a whole number, the first epoch is 1"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["extract", "--epoch", "7"], "there is no epoch 7 of RUN: its epochs are counted from 1 to 3"),
        (["probe", "--epoch", "4"], "there is no epoch 4 of RUN: its epochs are counted from 1 to 3"),
        *(
            ([stage, "--epoch", n], f"--epoch: {FROM_1}, found '{n}'")
            for stage, n in (("extract", "-1"), ("extract", "0"), ("probe", "0"), ("run", "x"))
        ),
        (["plot", "--epoch", "0"], "there is no epoch 0 of RUN: its epochs are counted from 1 to 3"),
        (["plot", "--epoch", "4"], "there is no epoch 4 of RUN: its epochs are counted from 1 to 3"),
    ],
)
def test_epoch__one_that_was_not_trained_is_refused(evolved: Run, words: list[str], line: str) -> None:
    named = [evolved.name] if words[0] == "plot" else ["--run", evolved.name]
    code, _, err = call_on(evolved, words[0], *named, *words[1:])
    assert code in (1, 2)
    assert err == f"satstore: {line.replace('RUN', evolved.name)}\n"


def test_probe__names_the_extraction_that_is_missing(run: Run) -> None:
    code, _, err = call_on(run, "probe", "--run", run.name, "-d", "2", "--epoch", "1")
    assert code == 1
    assert err.endswith(
        f"(missing: pool2 of epoch 1 train); run: satstore extract --run {run.name} -d 2 --epoch 1\n"
    )


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


SHARD = "latents.zarr/epochs/0/pool4/train/features.4/latent/c/0/0/0/0"
ALL = "satstore extract --run {run} -d 4 --epoch 3 --epoch 1 --epoch 2"
DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    (SHARD, flip, "satstore extract --run {run} -d 4 --epoch 1"),
    ("latents.zarr/epochs/1/pool4/eval/label/c/0", flip, "satstore extract --run {run} -d 4 --epoch 2"),
    ("latents.zarr/epochs/1/pool4/zarr.json", Path.unlink, "satstore extract --run {run} -d 4 --epoch 2"),
    ("latents.zarr/pool4/eval/label/c/0", flip, "satstore extract --run {run} -d 4 --epoch 3"),
    ("latents.zarr/epochs/zarr.json", flip, ALL),
    ("latents.zarr/epochs/0/zarr.json", Path.unlink, ALL),
    ("latents.zarr/zarr.json", flip, ALL),
    ("probe-epoch0-pool4.csv", flip, "satstore probe --run {run} -d 4 --epoch 1 --overwrite"),
    (
        "analysis.zarr/probes/epoch1-pool4/features.4/coef/c/0/0",
        flip,
        "satstore probe --run {run} -d 4 --epoch 2 --overwrite",
    ),
    ("checkpoint-epoch1.pt", flip, "satstore train --run {run} --overwrite"),
]


@pytest.mark.parametrize(("name", "damage", "command"), DAMAGES)
def test_verify__finds_damage_of_an_epoch_and_names_what_repairs_it(
    run: Run, name: str, damage: Callable[[Path], object], command: str
) -> None:
    damage(run.path / name)
    [finding] = Verification(run).findings()
    assert finding.what.startswith(f"{name} ")
    assert finding.command == command.format(run=run.name)


QUICK = {SHARD, "probe-epoch0-pool4.csv"}
REPAIRS = [pytest.param(*case, marks=() if case[0] in QUICK else pytest.mark.long) for case in DAMAGES]


@pytest.mark.parametrize(("name", "damage", "command"), REPAIRS)
def test_command__that_verify_names_repairs_an_epoch(
    run: Run, evolved: Run, name: str, damage: Callable[[Path], object], command: str
) -> None:
    damage(run.path / name)
    code, _, err = call_on(run, *shlex.split(command.format(run=run.name))[1:])
    assert code == 0, err
    mended = Run(run.path)
    assert list(Verification(mended).findings()) == []
    assert mended.read_file("checkpoint-epoch1.pt") == evolved.read_file("checkpoint-epoch1.pt")
    for split in ("train", "eval"):
        np.testing.assert_array_equal(
            mended.latents("pool4", split, 0)["features.4"].numpy(),
            evolved.latents("pool4", split, 0)["features.4"].numpy(),
        )


def test_extraction__is_one_command_for_epochs_of_the_same_poolings(run: Run) -> None:
    base = f"satstore extract --run {run.name}"
    assert extract_command(run) == base
    assert extract_command(run, LatentsKey("4"), LatentsKey("full")) == f"{base} -d 4 -d full --epoch 3"
    assert extract_command(run, LatentsKey("4"), LatentsKey("4", 0), LatentsKey("2", 0)) == (
        f"{base} -d 4 --epoch 3; {base} -d 4 -d 2 --epoch 1"
    )


# The disk


def test_du_and_clean__count_and_remove_the_epochs(run: Run) -> None:
    usage, record = measure_disk_usage(run), run.manifest.latents
    assert usage.by_key.keys() - {None} == EPOCHS
    assert usage.checkpoint_bytes == sum(path.stat().st_size for path in run.path.glob("*.pt"))
    assert usage.total_bytes == sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    for key, size_bytes in usage.by_key.items():
        if key:
            files = (run.latents_path / str(key)).rglob("*")  # type: ignore[operator]
            assert size_bytes == sum(path.stat().st_size for path in files if path.is_file())
    code, out, _ = call_on(run, "clean", run.name, "--latents", "--yes")
    assert code == 0
    call_on(run, *shlex.split(out.splitlines()[-1])[1:])
    assert Run(run.path).manifest.latents == record
    run.reload()
    run.commit(change=lambda manifest: manifest.files.pop("checkpoint-epoch1.pt"))
    with pytest.raises(NotFoundError, match=r"has no checkpoint-epoch1\.pt: its latents could not be"):
        check_removable(run)


def test_estimate__counts_the_epochs(tmp_path: Path) -> None:
    found = []
    for epochs in ([], [0, 1], [2, 0]):  # 2 is the last, which is there anyway
        (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "latent_epochs": epochs}))
        words = ["estimate", "--config", tmp_path / "config.json", "--no-calibrate", "--json"]
        code, out, err = call(*words, "--logs-dir", tmp_path)
        assert code == 0, err
        found += json.loads(out)
    alone, three, two = found
    assert [answer["n_latent_epochs"] for answer in found] == [1, 3, 2]
    assert [answer["disk_bytes"] for answer in (three, two)] == [
        3 * alone["disk_bytes"],
        2 * alone["disk_bytes"],
    ]
    kept_bytes = 4 * sum(value.numel() for value in MODELS["vgg7_S"](num_classes=3).state_dict().values())
    assert three["checkpoint_bytes"] - alone["checkpoint_bytes"] == pytest.approx(2 * kept_bytes, rel=0.01)
