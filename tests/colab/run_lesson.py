"""Run one notebook file in its folder, say what its first cells did, and save it executed.

    python run_lesson.py 01_build_the_illusion_by_hand.ipynb

Ends with an error if a cell fails that is not meant to.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

path = Path(sys.argv[1]).resolve()
notebook = nbformat.read(path, as_version=4)
client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(path.parent)}})
with client.setup_kernel():
    for index, cell in enumerate(notebook.cells):
        start = time.monotonic()
        client.execute_cell(cell, index)
        if cell.id in ("fetch", "setup"):
            print(f"cell {cell.id}: {time.monotonic() - start:.0f} s")
            print("".join(f"    {output.get('text', output)}" for output in cell.outputs), end="")
nbformat.write(notebook, path)
print(f"{path.name} ran to its end")
