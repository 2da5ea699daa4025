"""Hook of MkDocs: formulas as drawings.

Formulas stand between dollar signs, which forges render, too. They are drawn while the site is built: the pages load
neither a program nor fonts for them.
"""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET
from typing import Any

from mkdocs.exceptions import PluginError
from ziamath.config import config
from ziamath.tex import tex2mml
from ziamath.zmath import Math

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
GLYPH = re.compile(r'<symbol id="([^"]+)"[^>]*(?:/>|(?<!/)>.*?</symbol>)', re.DOTALL)
# A formula with what touches it, from which no line may part it.
TOUCHED = re.compile(r'([^\s<>]*)(<svg [^>]*role="img" .*?</svg>)([^\s<>]*)', re.DOTALL)
# Units of a drawing in one em of the text.
SIZE = 16
SCRIPTS = {"msub", "msup", "msubsup"}
# Letters at which the font sets indices too far to the left or primes too far to the right.
MISPLACING = {"D", "P", "W", "r"}
CLOSING = (")", "]", "|", "‖")


def _narrow(accent: ET.Element) -> None:
    accent.attrib |= {"lspace": "0", "rspace": "0"}
    if accent.text == "\N{COMBINING CIRCUMFLEX ACCENT}":
        accent.text = "\N{MODIFIER LETTER CIRCUMFLEX ACCENT}"
        accent.set("stretchy", "false")


def _apart(node: ET.Element) -> None:
    """Indices that stand as high as those of a plain letter, whatever their base is."""
    scripts = ET.Element(node.tag)
    scripts.extend([ET.Element("mi"), *node[1:]])
    node.tag, node[1:] = "mrow", [scripts]


def _spaced(row: ET.Element) -> None:
    """Put thin spaces around names of functions and operators, but a max(a, b), and none behind a sign."""
    for place in reversed(range(len(row))):
        name = row[place][0] if row[place].tag in SCRIPTS else row[place]
        after, before = row[place + 1 : place + 2], row[max(place - 1, 0) : place]
        opened = not before or (before[0].tag == "mo" and before[0].text not in CLOSING)
        if name.tag == "mo" and name.text == "−" and opened:
            name.attrib |= {"lspace": "0", "rspace": "0"}
        elif name.tag == "mo" and len(name.text or "") > 1 and str(name.text).isalpha():
            name.attrib |= {"lspace": "0", "rspace": "0"}
            space = ET.Element("mspace", width="0.167em")
            if after and not (after[0].tag == "mo" and after[0].text == "("):
                row.insert(place + 1, space)
            if not opened:
                row.insert(place, space)


def mathml(latex: str, display: bool) -> ET.Element:
    """MathML of one formula, laid out as TeX does it.

    Bars do not grow unless ``\\left`` says so, accents are narrow and do not lift indices, and names have space.
    """
    root = ET.fromstring(re.sub(r' xmlns="[^"]*"', "", tex2mml(latex, inline=not display)))
    for node in root.iter():
        if node.text == "‖" and "stretchy" not in node.attrib:
            node.tag = "mo"
            node.set("stretchy", "false")
    for node in list(root.iter()):
        if node.tag == "mo" and node.text in ("∇", "∂"):
            node.set("rspace", "0")
        elif node.tag == "mover" and node[0].tag == "mi" and node[1].tag == "mo":
            _narrow(node[1])
        elif node.tag in SCRIPTS and (node[0].tag == "mover" or node[0].text in MISPLACING):
            _apart(node)
        elif node.tag not in SCRIPTS:
            _spaced(node)
    return root


def drawn(latex: str, display: bool) -> str:
    """One formula as SVG of the text's colour and size, its LaTeX as what is read aloud.

    Raises:
        PluginError: LaTeX that is not understood.
    """
    try:
        formula = Math(mathml(latex, display), size=SIZE)
        svg, below = formula.svg(), formula.getyofst()
    except Exception as error:
        raise PluginError(f"a formula is not understood: {latex} ({error})") from error
    width = re.search(r' width="([\d.]+)" height="[\d.]+"', svg)
    assert width is not None
    style = f"width: {float(width[1]) / SIZE:.3f}em; vertical-align: {below / SIZE:.3f}em"
    spoken = html.escape(latex, quote=True)
    svg = svg.replace(width[0], f' role="img" aria-label="{spoken}" style="{style}"', 1)
    return f'<div class="formula">{svg}</div>' if display else svg


def on_page_content(page_html: str, **_: Any) -> str:
    """Called by MkDocs with the HTML of a page: its formulas are drawn, each glyph once in the page."""
    config.math.color = "currentColor"
    page_html = FORMULA.sub(lambda m: drawn(html.unescape(m[3]).strip(), m[2] == "["), page_html)
    page_html = TOUCHED.sub(lambda m: f'<span class="unbroken">{m[0]}</span>' if m[1] or m[3] else m[0], page_html)
    glyphs: dict[str, str] = {}

    def once(match: re.Match[str]) -> str:
        # Another drawing under a name that is taken stays where it is.
        return "" if glyphs.setdefault(match[1], match[0]) == match[0] else match[0]

    page_html = GLYPH.sub(once, page_html)
    return (
        f'<svg aria-hidden="true" class="glyphs">{"".join(glyphs.values())}</svg>{page_html}' if glyphs else page_html
    )
