"""What bash completes, asked of bash itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import call, fail

ASK = """
source <(python -m satstore completion bash)
ask() {
  COMP_WORDS=(satstore "$@"); COMP_CWORD=$#; COMPREPLY=()
  COMP_LINE="satstore $*"; COMP_POINT=${#COMP_LINE}
  _satstore
  echo "${COMPREPLY[*]}"
}
satstore() { python -m satstore "$@"; }
"""


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what completion looks for: manifests, which it does not read."""
    folder = tmp_path_factory.mktemp("complete")
    for name in ("first/vgg-1", "first/vgg-2", "second/resnet-1"):
        (folder / "logs" / name).mkdir(parents=True)
        (folder / "logs" / name / "manifest.json").touch()
    (folder / "mine.json").touch()
    return folder


CASES = {
    "pro": "probe project",
    "show second/": "second/resnet-1",
    "run --config mi": "mine.json",
    "probe --mem": "--memory-limit",
    "show ''": "first second first/vgg-1 first/vgg-2 second/resnet-1",
    "plot first se": "second second/resnet-1",
    "probe --run fir": "first first/vgg-1 first/vgg-2",
    "probe --logs-dir /nowhere --run fir": "",
    "run --config section3.4/": "section3.4/figure4 section3.4/figure5 section3.4/figure6",
    "figure table": "table1 table1_2",
    "plot --kind pi": "pixelwise",
    "export --to p": "parquet",
}
"""What is typed, and what bash then completes: a command, a run, a config, and so on."""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize("n_cases", [3, pytest.param(len(CASES), marks=pytest.mark.long)])
def test_completion__of_bash_knows_commands_flags_runs_and_configs(n_cases: int, logs: Path) -> None:
    cases = dict(list(CASES.items())[:n_cases])
    script = ASK + "\n".join(f"ask {words}" for words in cases)
    folder = str(Path(sys.executable).parent)
    result = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=logs,
        env={**os.environ, "SATSTORE_LOGS_DIR": "logs", "PATH": f"{folder}:{os.environ['PATH']}"},
    )
    assert result.stderr == ""
    assert dict(zip(cases, result.stdout.splitlines(), strict=True)) == cases


@pytest.mark.parametrize(
    "shell", ["zsh", *(pytest.param(shell, marks=pytest.mark.long) for shell in ("fish", "powershell"))]
)
def test_completion__prints_a_script_for_every_shell(shell: str) -> None:
    code, out, err = call("completion", shell)
    assert (code, err) == (0, "")
    for name in ("satstore", "receptive-field", "memory-limit"):
        assert name in out


def test_completion__of_another_shell_is_refused() -> None:
    code, error = fail("completion", "tcsh")
    assert code == 2
    assert "tcsh" in error
