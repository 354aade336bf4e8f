"""Executes the notebooks and keeps what they show: ``python notebooks/execute.py [NAME.ipynb …]``."""

import base64
import io
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent


def execute(path: Path) -> None:
    """Execute a notebook in place, and keep nothing that differs from one time to the next."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, record_timing=False, coalesce_streams=True).execute(cwd=str(HERE))
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number}"
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = shrink(output.data["image/png"])
    nbformat.write(notebook, path)


def shrink(text: str) -> str:
    """Give a picture 256 colours of its own: a third of the size, and each colour within a few levels."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        # Median cut, the default, shows steps in colour bars.
        plain = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    content = io.BytesIO()
    plain.save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        os.environ["SATSTORE_LOGS_DIR"] = f"{folder}/logs"
        os.environ["IPYTHONDIR"] = f"{folder}/ipython"  # no profile of the user's
        os.environ["OMP_NUM_THREADS"] = "2"  # sums depend on it; the demo in the README ran on two cores
        for name in sys.argv[1:] or sorted(p.name for p in HERE.glob("*.ipynb")):
            execute(HERE / name)
