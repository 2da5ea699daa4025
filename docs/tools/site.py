"""Hook of MkDocs: a page for each command, made from the command line itself."""

from __future__ import annotations

import html
import re
from typing import Any

import typer
from mkdocs.structure.files import File, Files

from lplr_cli.cli.app import app
from lplr_cli.cli.main import OVERVIEW

FOLDER = "reference/commands"
EXIT_STATUS = OVERVIEW[OVERVIEW.index("Exit codes") :].split("\n", 1)[1]
SEE_ALSO = {
    "train": ("watch", "audit", "ablate"),
    "ablate": ("train", "report"),
    "probe-ntk": ("certify", "probe-hessian", "train"),
    "probe-hessian": ("probe-ntk", "train"),
    "certify": ("probe-ntk", "audit"),
    "pl-ratio": ("fit-rate", "audit"),
    "fit-rate": ("pl-ratio", "audit"),
    "audit": ("pl-ratio", "certify", "report"),
    "report": ("audit", "list"),
    "list": ("report", "watch"),
    "watch": ("list", "train"),
}


def _unmarked(text: str) -> str:
    return re.sub(r"\[/?bold\]", "", text)


def _cell(text: str) -> str:
    return html.escape(_unmarked(text), quote=False).replace("|", "&#124;").replace("\n", " ")


def _piece(text: str) -> str:
    """Of a usage line: braces stand around alternatives alone."""
    return text if "|" in text else text.replace("{", "").replace("}", "")


def command_page(name: str, command: Any) -> str:
    """The page of one command: name, synopsis, examples, options in their groups, exit status, see also."""
    context = typer.Context(command, info_name=f"lplr {name}")
    summary, _, examples = _unmarked(command.help).partition("\n\n")
    lines = [
        f"# lplr {name}",
        summary,
        "## Synopsis",
        f"```text\nlplr {name} {' '.join(map(_piece, command.collect_usage_pieces(context)))}\n```",
    ]
    if examples.strip():
        lines += ["## Examples", f"```sh\n{examples.strip()}\n```"]
    panels: dict[str, list[str]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if parameter.param_type_name == "argument":
            what, text, panel = parameter.metavar or parameter.name.upper(), parameter.help or "", "Arguments"
        elif record is not None:
            (what, text), panel = record, parameter.rich_help_panel or "Options"
        else:
            continue
        code = html.escape(what).replace("|", "&#124;")
        panels.setdefault(panel, []).append(f"| <code>{code}</code> | {_cell(text)} |")
    # Options of no group come first; --help alone comes last.
    alone = len(panels["Options"]) == 1
    places = {"Arguments": 0, "Options": 3 if alone else 1}
    for panel in sorted(panels, key=lambda p: places.get(p, 2)):
        head = f"| {'argument' if panel == 'Arguments' else 'option'} | meaning |\n|---|---|\n"
        lines += [f"## {panel}", head + "\n".join(panels[panel])]
    lines += ["## Exit status", f"```text\n{EXIT_STATUS}```"]
    lines += ["## See also", ", ".join(f"[lplr {other}]({other}.md)" for other in SEE_ALSO[name])]
    return "\n\n".join(lines) + "\n"


def index_page(commands: dict[str, Any]) -> str:
    """The overview of ``lplr --help`` with a link to every command."""
    rows = [
        f"| [`lplr {name}`]({name}.md) | {_unmarked(c.help).partition(chr(10))[0]} |" for name, c in commands.items()
    ]
    table = "| command | what it does |\n|---|---|\n" + "\n".join(rows)
    return f"# Commands\n\n{table}\n\nThe overview that `lplr --help` prints:\n\n```text\n{OVERVIEW}```\n"


def on_files(files: Files, config: Any) -> Files:
    """Called by MkDocs: add the generated pages."""
    group: Any = typer.main.get_command(app)
    pages = {"index": index_page(group.commands)}
    pages |= {name: command_page(name, command) for name, command in group.commands.items()}
    for name, text in pages.items():
        files.append(File.generated(config, f"{FOLDER}/{name}.md", content=text))
    return files
