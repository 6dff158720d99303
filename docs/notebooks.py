"""The notebook: `python docs/notebooks.py` runs it in an empty folder and saves its outputs; the site has it as a page.

Running needs nbclient and ipykernel (`pip install -e '.[docs]'`), and what the notebook installs at its beginning.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parent / "pages" / "own_environment.ipynb"
_SHOWN_WIDTH = 120  # letters of a line of output


def as_markdown(text: str) -> str:
    """Return a notebook as a page: its code, its printed outputs, and its pictures.

    Args:
        text: the notebook's JSON, of nbformat 4.
    """
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        file = re.match(r"%%writefile (\S+)\n", source)
        if file is not None:
            parts += [f"`{file[1]}`:", f"```python\n{source[file.end() :]}\n```"]
        else:
            parts.append(f"```python\n{source}\n```")
            parts += [_shown(output) for output in cell["outputs"]]
    return "\n\n".join(filter(None, parts)) + "\n"


def _shown(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return "```text\n" + "".join(output["text"]).rstrip() + "\n```"
    data = output.get("data", {})
    for kind in ("image/gif", "image/png"):
        if kind in data:
            picture = "".join(data[kind]).replace("\n", "")
            alt = output["metadata"].get(kind, {}).get("alt", "")
            return f'<img src="data:{kind};base64,{picture}" alt="{alt}">'
    return "```text\n" + "".join(data["text/plain"]) + "\n```" if "text/plain" in data else ""


def executed(path: Path = NOTEBOOK) -> Any:
    """Return the notebook with new outputs.

    Args:
        path: the notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised an error.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _is_shown(output)]
    return notebook


def _is_shown(output: Any) -> bool:
    return bool(output.get("name") != "stderr" and output["output_type"] != "display_data")  # warnings; progress


def main() -> None:
    """Run the notebook, and save it."""
    import nbformat

    os.environ["COLUMNS"] = str(_SHOWN_WIDTH)
    nbformat.write(executed(), NOTEBOOK)


if __name__ == "__main__":
    main()
