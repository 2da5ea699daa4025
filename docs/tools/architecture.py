"""Draw ``docs/figures/architecture.svg`` from the imports of the package.

    python docs/tools/architecture.py

An arrow is a direct import that no longer path implies (the transitive reduction); tests/docs/test_site.py compares the
picture with the imports as the test suite reads them.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

import grimp
import networkx as nx

PICTURE = Path(__file__).parents[1] / "figures" / "architecture.svg"
# What a reader finds there, and where it is drawn: horizontal place in per cent, row.
ROLES = {
    "cli": ("commands: parse, call, print", 50, 0),
    "api": ("the commands as functions", 84, 0),
    "reporting": ("tables, figures, HTML, JUnit", 16, 1),
    "audit": ("verdicts, policies", 16, 2),
    "ablation": ("grids, executors, recovery", 84, 2),
    "analysis": ("finished runs, anyone's files", 50, 3),
    "training": ("loop, Recorder, probes", 84, 4),
    "diagnostics": ("PL ratio, window, rate", 50, 6),
    "certificate": ("L_J, radii, μ, containment", 50, 5),
    "runs": ("formats, atomic files, readers", 84, 5),
    "curvature": ("Hessian products, sharpness", 16, 6),
    "ntk": ("engines, operator, spectrum", 50, 7),
    "models": ("MLP, ResNet, weights", 84, 7),
    "linalg": ("Lanczos, Cholesky, bounds", 16, 8),
    "data": ("embedded and own data", 84, 8),
}
WIDTH, BOX, HEIGHT, ROW = 900, 214, 50, 96


def layer_imports() -> nx.DiGraph:
    """Layers, with an edge for every layer that another one imports from; type-checking imports left out."""
    graph = grimp.build_graph("lplr_cli", exclude_type_checking_imports=True)
    found = nx.DiGraph()
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            ends = [name.split(".")[1] for name in (module, other) if "." in name]
            if len(ends) == 2 and ends[0] != ends[1] and set(ends) <= set(ROLES):
                found.add_edge(*ends)
    return found


def draw(imports: nx.DiGraph) -> str:
    """The picture as SVG, with an arrow for every edge of the transitive reduction.

    Raises:
        networkx.NetworkXError: the layers import each other in a circle.
    """
    arrows = nx.transitive_reduction(imports)
    order = list(ROLES)
    places = {name: (WIDTH * x / 100, 12 + y * ROW) for name, (_, x, y) in ROLES.items()}
    height = max(y for _, y in places.values()) + HEIGHT + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="Layers of lplr_cli and the imports between them, all downwards" '
        'font-family="system-ui, sans-serif">',
        "<style>rect{fill:#eef3fb;stroke:#3b5b92}text{fill:#1a2333}.r{fill:#4a5568}path{stroke:#6b7a90;fill:none}"
        "#h path{fill:#6b7a90}@media (prefers-color-scheme:dark){rect{fill:#1d2a44;stroke:#8fb0ea}text{fill:#e8edf6}"
        ".r{fill:#b4bfd1}path{stroke:#93a1b8}#h path{fill:#93a1b8}}</style>",
        '<defs><marker id="h" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0.5L8,4L0,7.5z" stroke="none"/></marker></defs>',
    ]
    for a, b in sorted(arrows.edges, key=lambda e: (order.index(e[0]), order.index(e[1]))):
        (x0, y0), (x1, y1) = places[a], places[b]
        y0 += HEIGHT
        bend = (y1 - y0) / 2
        parts.append(
            f'<path data-import="{a} {b}" d="M{x0:.0f},{y0} C{x0:.0f},{y0 + bend:.0f} {x1:.0f},{y1 - bend:.0f} '
            f'{x1:.0f},{y1 - 1}" stroke-width="1.4" marker-end="url(#h)"/>'
        )
    for name, (x, y) in places.items():
        role = escape(ROLES[name][0])
        parts.append(
            f'<rect x="{x - BOX / 2:.0f}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="7"/>'
            f'<text x="{x:.0f}" y="{y + 21}" text-anchor="middle" font-size="15" font-weight="600">{name}</text>'
            f'<text x="{x:.0f}" y="{y + 39}" text-anchor="middle" font-size="12.5" class="r">{role}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(layer_imports()), encoding="utf-8")
