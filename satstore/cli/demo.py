"""``satstore demo``: the main job, end to end, on scikit-learn's handwritten digits."""

from pathlib import Path

from satstore.cli.look import layer_table, make_console, save_figure
from satstore.cli.progress import Bar
from satstore.cli.work import describe
from satstore.config import read_config
from satstore.pipeline import make_plan, make_runs, run_stages


def run_demo(run_id: str, device: str | None, logs_dir: Path | None) -> None:
    """Run the demo's stages, or find them done, and show the result."""
    [config] = read_config("demo")
    with Bar() as bar:
        [run] = make_runs([config], run_id, logs_dir, bar.listen)
        outcomes = run_stages([run], make_plan(config.stages, {"device": device}), with_needs=True)
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
            bar.say(describe(outcome))
    from satstore.plots import plot_layers

    run.reload()
    figure = run.path / "layers.png"
    if not figure.exists() or any(outcome.result == "done" for outcome in outcomes):
        save_figure(plot_layers(run), figure)
    console = make_console()
    console.print()
    console.print(layer_table(run))
    logs = f" --logs-dir {logs_dir}" if logs_dir else ""
    console.print(
        f"""
test accuracy  {run.manifest.summary.test_accuracy:.2%}
files          {run.path.absolute()}
figure         {figure.absolute()}

try next:
  satstore show {run.run_id}{logs}
  satstore saturation --run {run.run_id} --delta 0.9 --delta 0.999{logs}
  satstore probe --config demo --run-id {run.run_id} -d 2{logs}"""
    )
