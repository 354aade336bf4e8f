"""Executes the notebooks and keeps what they show: ``python notebooks/execute.py [NAME.ipynb …]``."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

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
    nbformat.write(notebook, path)


if __name__ == "__main__":
    with TemporaryDirectory() as logs:
        os.environ["SATSTORE_LOGS_DIR"] = logs
        for name in sys.argv[1:] or sorted(p.name for p in HERE.glob("*.ipynb")):
            execute(HERE / name)
