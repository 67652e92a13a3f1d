"""What is kept of an executed notebook: clean cells, and its figures as files."""

import base64
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from helpers.output import files
from tools.places import without_places

WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
FINDING = "finding"  # the tag of a cell whose printed text is what a lesson came to


def clean(notebook: NotebookNode) -> None:
    """Remove from a notebook what changes from run to run or from machine to machine."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
    executed = [cell for cell in notebook.cells if cell.get("execution_count")]
    for count, cell in enumerate(executed, start=1):
        cell.execution_count = count
        for part in cell.outputs:
            part.get("data", {}).pop(WIDGET, None)
            _remove_places(part)
            if part.output_type == "execute_result":
                part.execution_count = count


def _remove_places(part: NotebookNode) -> None:
    """Take the names of this machine's folders out of what a cell printed, warned of or raised."""
    texts = {"stream": ("text",), "error": ("evalue", "traceback")}
    for key in texts.get(part.output_type, ()):
        value = part[key]
        whole = isinstance(value, str)
        part[key] = without_places(value) if whole else [without_places(line) for line in value]


def save_figures(notebook: NotebookNode, lesson: str, folder: Path) -> None:
    """Write every PNG of a notebook as `<lesson>_<cell id>.png`, replacing an earlier run's."""
    for old in folder.glob(f"{lesson}_*.png"):
        old.unlink(missing_ok=True)  # another run at the same time may have been faster
    for cell in notebook.cells:
        data = [part.get("data", {}) for part in cell.get("outputs", ())]
        images = [datum["image/png"] for datum in data if "image/png" in datum]
        for number, image in enumerate(images, start=1):
            suffix = f"_{number}" if len(images) > 1 else ""
            files.write(folder / f"{lesson}_{cell.id}{suffix}.png", base64.b64decode(image))


def findings(notebook: NotebookNode) -> str:
    """What the cells with the tag "finding" have printed, one after the other."""
    tagged = [c for c in notebook.cells if FINDING in c.metadata.get("tags", ())]
    streams = [part for cell in tagged for part in cell.get("outputs", ())]
    return "".join(part.text for part in streams if part.get("name") == "stdout").rstrip()
