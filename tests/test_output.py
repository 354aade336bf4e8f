"""`--out`: the same of every command that writes a file for people."""

from pathlib import Path

import pytest
from command_line import call
from tiny import run_tiny

from satstore.cli.output import output_file
from satstore.runs.run import Run

COMMANDS = {
    "plot": (["plot", "RUN"], "layers.png", ".svg"),
    "plot of two": (["plot", "RUN", "RUN"], "comparison.png", ".pdf"),
    "plot of a quantity": (["plot", "RUN", "--quantity", "saturation"], "saturation-epoch2.png", ".png"),
    "report": (["report", "RUN"], "report.html", ".html"),
    "compare": (["compare", "RUN", "RUN", "--cka"], "cka.png", ".png"),
    "figure": (["figure", "CONFIG", "--run", "RES", "--format", "svg"], "tiny.svg", ".png"),
    "export": (["export", "RUN", "--to", "zip"], "ZIP", ".zip"),
}
"""The command, the name that its file has by default, and a suffix that it takes."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(run: Run, command: str, *words: object) -> tuple[int, str, str]:
    config = run.path / "tiny.json"
    config.write_text(run.read_file("config.json").decode())
    known = {"RUN": run.name, "RES": run.run_id, "CONFIG": str(config)}
    given = [known.get(word, word) for word in COMMANDS[command][0]]
    return call(*given, *words, "--logs-dir", run.path.parents[1])


def usual_name(run: Run, command: str) -> str:
    name = COMMANDS[command][1]
    return f"{run.run_id}-{run.experiment}.zip" if name == "ZIP" else name


@pytest.mark.parametrize("command", COMMANDS)
def test_out__is_a_file_by_its_suffix_and_else_a_folder(command: str, run: Run, here: Path) -> None:
    name, suffix = usual_name(run, command), COMMANDS[command][2]
    for out, path in {".": name, f"new/own{suffix}": f"new/own{suffix}"}.items():
        code, said, error = start(run, command, "--out", out)
        assert code == 0, error
        assert str(here / path) in said.splitlines()
        assert (here / path).stat().st_size > 100


def test_output_file__is_in_a_folder_that_is_there_or_is_called_like_one(here: Path) -> None:
    for folder in ("there", "v1.2", "a.png"):
        (here / folder).mkdir()
    usual, suffixes = Path("elsewhere/layers.png"), (".png", ".svg")
    assert output_file(None, usual, suffixes) == usual
    for out in ("there", "v1.2", "a.png", "new/er", ".."):
        assert output_file(Path(out), usual, suffixes) == Path(out) / "layers.png"
    for out in ("b.png", "new/B.SVG", "there/c.v2.png"):
        assert output_file(Path(out), usual, suffixes) == Path(out)


@pytest.mark.parametrize("command", COMMANDS)
def test_out__of_another_format_or_below_a_file_is_refused_and_nothing_written(
    command: str, run: Run, here: Path
) -> None:
    (here / "notes").write_text("mine")
    for out in ("a.xyz", "notes", "new/b.tar.gz"):
        code, _, error = start(run, command, "--out", out)
        assert code == 1
        assert f"--out {out}: expected a file that ends in {COMMANDS[command][2][:1]}" in error
        assert "Traceback" not in error
    code, _, error = start(run, command, "--out", "notes/a")
    assert code == 1
    assert len(error.strip().splitlines()) == 1
    assert [path.name for path in here.iterdir()] == ["notes"]
    assert (here / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [
        ["plot", "RUN", "--quantity", "saturation", "--epoch", "all"],
        ["export", "RUN", "--to", "csv"],
    ],
)
def test_out__of_several_files_is_a_folder(words: list[str], run: Run, here: Path) -> None:
    given = [run.name if word == "RUN" else word for word in words]
    logs = ["--logs-dir", run.path.parents[1]]
    code, _, error = call(*given, "--out", "a.png", *logs)
    assert code == 1
    assert "--out a.png: expected a folder, for several files are written" in error
    assert list(here.iterdir()) == []
    code, _, error = call(*given, "--out", "new", *logs)
    assert code == 0, error
    assert list((here / "new").rglob("*.*"))


def test_plot__replaces_no_picture_of_other_options(run: Run, here: Path) -> None:
    own = run.path / "layers.png"
    code, said, error = start(run, "plot")
    assert (code, said.strip()) == (0, str(own)), error
    before = own.read_bytes()
    names = {
        "layers-delta0.9.png": ["--delta", ".9"],
        "layers-all-layers.png": ["--all-layers"],
        "layers-all-layers-delta0.9.png": ["--all-layers", "--delta", ".9"],
    }
    for name, words in names.items():
        code, said, error = start(run, "plot", *words)
        assert (code, said.strip()) == (0, str(run.path / name)), error
    assert own.read_bytes() == before


def test_figure__of_an_unknown_run_is_refused(run: Run, here: Path) -> None:
    code, _, error = call("figure", "demo", "--run", "typo", "--logs-dir", run.path.parents[1])
    assert code == 1
    assert "no run 'typo'" in error
    assert not (run.path.parents[1] / "typo").exists()
