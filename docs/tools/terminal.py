"""Draw ``docs/figures/terminal.svg``: the closing table of ``lplr train mnist --width 64`` as a terminal shows it.

python docs/tools/terminal.py
"""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

import lplr_cli as lplr
from lplr_cli.analysis import summarize
from lplr_cli.reporting import summary_grid
from lplr_cli.runs import RunDirectory

PICTURE = Path(__file__).parents[1] / "figures" / "terminal.svg"


def main() -> None:
    """Train, print to a recording console, export."""
    with tempfile.TemporaryDirectory() as folder:
        run = lplr.train("mnist", Path(folder) / "mnist-mlp64-s0", width=64)
        directory = RunDirectory.open(run.path)
        grid = summary_grid(summarize(directory))
    console = Console(record=True, width=132, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "bold green"), ("lplr train mnist --width 64", "bold")))
    console.print(grid.to_rich(console.width))
    for line in grid.note[:2]:
        console.print(line, highlight=False, markup=False)
    picture = console.export_svg(title="lplr")
    # Fonts of the reader's own: a picture asks nobody for anything.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    picture = picture.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace")
    PICTURE.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
