"""Make the notebooks of this folder from their scripts, with their outputs: make notebooks.

What would differ from run to run or from machine to machine is left out: numbers of the execution,
times, widgets such as progress bars.
"""

import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(script: Path) -> None:
    """Write the notebook of a script beside it."""
    made = jupytext.read(script)
    with tempfile.TemporaryDirectory() as folder:
        how = {"kernel_name": "python3", "timeout": 600, "record_timing": False}
        NotebookClient(made, **how, resources={"metadata": {"path": folder}}).execute()
    for number, cell in enumerate(made.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if WIDGET not in one.get("data", {})]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    nbformat.write(made, script.with_suffix(".ipynb"))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        execute(HERE / name)
