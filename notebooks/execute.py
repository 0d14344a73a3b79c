"""Runs notebooks from top to bottom, in place, and fails where a cell fails.

python -m notebooks.execute notebooks/quickstart.ipynb
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main() -> None:
    """Executes every notebook named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="keep the outputs in the file")
    arguments = parser.parse_args()
    for path in arguments.notebooks:
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            NotebookClient(notebook, timeout=600, resources=resources).execute()
        if arguments.write:
            for cell in notebook.cells:
                cell.metadata.pop("execution", None)
            nbformat.write(notebook, path)
        print(f"{path}: {len(notebook.cells)} cells ran")


if __name__ == "__main__":
    main()
