"""Text of files and names on its way out: one function for each place where it can do harm.

Columns, tensor names, folders, statuses and sets of a policy are whatever somebody wrote. Shown raw they can move the
cursor, retitle or answer for a terminal, open a link, become markup, or start a formula in a spreadsheet. Every text
that leaves lplr goes through the function of its sink, its own words too: there is no list of trusted strings.

Imports nothing but the standard library, so that an error can be shown before anything else is loaded.
"""

from __future__ import annotations

import html as _html
import json as _json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# C0, DEL and C1 (which hold ESC, BEL, CSI and OSC), line and paragraph separators, marks that turn the direction of
# writing, lone surrogates (undecodable bytes of file names), and what XML 1.0 cannot hold.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# What CommonMark and its GitHub form read as more than itself within a line. An underscore between letters is itself.
_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_+|_+(?![^\W_])")
# What GitHub makes a link to a page of without any mark.
_LINK = re.compile(r"(?<=[A-Za-z]):(?=//)|(?<=www)\.", re.IGNORECASE)
_BLOCK = re.compile(r"([-+#=:]+(?=\s|$)|#+|\d+(?=[.)](?:\s|$)))")
# A spreadsheet takes a cell that begins so for a formula, in some languages the full-width forms too.
_FORMULA = tuple("=+-@＝＋－＠")


def line(text: object, keep: str = "") -> str:
    """One line for a terminal: what is not seen but obeyed is spelled, as in ``\\x1b`` or ``\\n``.

    Args:
        text: of any origin.
        keep: characters that stay, such as the newline between lines that were made here.
    """
    return _UNSEEN.sub(lambda match: match[0] if match[0] in keep else _spelled(match[0]), str(text))


def _spelled(character: str) -> str:
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def markdown(text: object, bold: bool = False) -> str:
    """Text for a paragraph, list or table cell of Markdown (CommonMark, GitHub), on one line, without any meaning.

    Args:
        text: of any origin.
        bold: set it so; for a text that is a whole line.
    """
    shown = _html.escape(line(text).strip(), quote=False)
    shown = _MARKDOWN.sub(lambda match: "".join(f"\\{character}" for character in match[0]), shown)
    shown = _LINK.sub(lambda match: f"\\{match[0]}", shown)
    if bold:
        return f"**{shown}**" if shown else ""
    return _BLOCK.sub(_inert, shown, count=1) if _BLOCK.match(shown) else shown


def _inert(match: re.Match[str]) -> str:
    """The mark of a list, heading or rule at the start of a line, which a backslash before its last sign stops."""
    mark = match[0]
    return f"{mark}\\" if mark.isdigit() else "\\" + mark


def html(text: object, keep: str = "") -> str:
    """Text or a quoted attribute of HTML or inline SVG."""
    return _html.escape(line(text, keep), quote=True)


def xml(text: object) -> str:
    """Text that an XML 1.0 library may put into text or attributes; it escapes the markup itself."""
    return line(text)


def figure(text: object) -> str:
    """A title or label of Matplotlib: no formula between dollar signs, and no name that a legend leaves out."""
    shown = line(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def json(record: Any, ascii: bool = False) -> str:
    """A JSON document whose strings are the same when read, and none of whose characters a terminal obeys.

    Args:
        record: finite numbers only.
        ascii: spell everything beyond ASCII.

    Raises:
        ValueError: NaN or infinity.
    """
    text = _json.dumps(record, indent=2, allow_nan=False, ensure_ascii=ascii)
    return _UNSEEN.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text) + "\n"


def csv(frame: pd.DataFrame) -> str:
    """A CSV table, a line a row: text is that of :func:`line`, and a formula has an apostrophe before it.

    A text cell or heading that begins with = + - or @ and is no number gets ``'`` in front, which spreadsheets take
    for "text follows". Numbers stay numbers, with full precision.
    """
    safe = frame.copy(deep=False)
    safe.columns = [_cell(name) for name in frame.columns]
    for position, kind in enumerate(frame.dtypes):
        if kind.kind not in "biufMm":
            safe.isetitem(position, frame.iloc[:, position].map(_cell).to_numpy(dtype=object))
    return str(safe.to_csv(index=False))


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    shown = line(value)
    return f"'{shown}" if shown.startswith(_FORMULA) and not _is_number(shown) else shown


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def encodable(text: str) -> str:
    """Text that UTF-8 can hold: lone surrogates spelled, all else as it is; for columnar files."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
