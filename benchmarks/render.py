"""Tables and plots of cipher and frame figures: Markdown and SVG, with nothing but the standard library.

python benchmarks/render.py        makes them again from benchmarks/results/{cipher,frames}.json
"""

from __future__ import annotations

import json
import math
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
DIRECTIONS = ("protect", "validate")
PEERS = ("ipsec-mb", "openssl", "cryptography")
BARE = "best peer, cipher alone"
COLOURS = {
    "vaes512": "#c2185b",
    "ipsec-mb": "#1565c0",
    "vaes256": "#ef6c00",
    "aesni": "#8e24aa",
    "openssl": "#2e7d32",
    "cryptography": "#616161",
    BARE: "#1565c0",
}
PANEL_W, PANEL_H, LEFT, TOP, GAP, LEGEND_W = 360, 300, 56, 56, 56, 190


def lines_of(rows, suite, direction, value):
    """Points of each backend by size, in the order of the rows."""
    lines = {}
    for row in rows:
        if (row["suite"], row["direction"]) == (suite, direction):
            lines.setdefault(row["backend"], {})[row["size"]] = row[value]
    return lines


def table(title, rows, limit):
    """Markdown: per suite and direction a line a backend: Gbit/s and, in brackets, of the port limit."""
    sizes = sorted({row["size"] for row in rows})
    out = [f"# {title}", ""]
    if limit:
        out += [
            f"Port limit of a core, Gbit/s: AES-128 {limit['aes128_gbps']}, AES-256 {limit['aes256_gbps']}.",
            "In brackets: share of it, the median of the rounds' own.",
            "",
        ]
    for suite in dict.fromkeys(row["suite"] for row in rows):
        out += [f"| {suite}, Gbit/s | | {' | '.join(map(str, sizes))} |", "|---|---|" + "---:|" * len(sizes)]
        for direction in DIRECTIONS:
            shares = lines_of(rows, suite, direction, "of_limit") if limit else {}
            for backend, line in lines_of(rows, suite, direction, "gbps").items():
                cells = [
                    f"{line[s]:g}" + (f" ({shares[backend][s]:.2f})" if shares else "") if s in line else ""
                    for s in sizes
                ]
                out.append(f"| {backend} | {direction} | {' | '.join(cells)} |")
        out.append("")
    return "\n".join(out)


def best_of_peers(rows, suite):
    """The fastest peer of each size and direction, as rows of a backend of their own."""
    found = {}
    for row in rows:
        key = (row["direction"], row["size"])
        if row["suite"] == suite and row["backend"] in PEERS:
            found[key] = max(found.get(key, row), row, key=lambda one: one["gbps"])
    return [row | {"backend": BARE} for row in found.values()]


def svg(title, rows, suite, beside=()):
    """Share of the port limit by frame size, a panel a direction; dashed: the best peer `beside`."""
    rows = [*rows, *best_of_peers(beside, suite)]
    sizes = sorted({row["size"] for row in rows})
    top = max(1.0, math.ceil(max(row["of_limit"] for row in rows if row["suite"] == suite) * 5) / 5)
    width = LEFT + 2 * PANEL_W + GAP + LEGEND_W
    height = TOP + PANEL_H + 56
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        "<style>text { font-family: sans-serif; font-size: 12px }</style>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" style="font-size: 15px">{title}</text>',
    ]
    for panel, direction in enumerate(DIRECTIONS):
        left = LEFT + panel * (PANEL_W + GAP)

        def x(size, left=left):
            return left + sizes.index(size) * PANEL_W / max(1, len(sizes) - 1)

        def y(share):
            return TOP + PANEL_H * (1 - share / top)

        out.append(f'<text x="{left}" y="{TOP - 12}">{direction}: share of the port limit</text>')
        for step in range(int(top * 5) + 1):
            share = step / 5
            dash = ' stroke-dasharray="5 4" stroke="#000000"' if share == 1 else ' stroke="#dddddd"'
            out.append(
                f'<line x1="{left}" x2="{left + PANEL_W}" y1="{y(share):.1f}" y2="{y(share):.1f}"{dash}/>'
            )
            out.append(f'<text x="{left - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.1f}</text>')
        out += [
            f'<text x="{x(s):.1f}" y="{TOP + PANEL_H + 18}" text-anchor="middle">{s}</text>' for s in sizes
        ]
        out.append(
            f'<text x="{left + PANEL_W / 2}" y="{TOP + PANEL_H + 38}" text-anchor="middle">octets</text>'
        )
        for backend, line in lines_of(rows, suite, direction, "of_limit").items():
            colour = COLOURS.get(backend, "#000000")
            points = " ".join(f"{x(s):.1f},{y(line[s]):.1f}" for s in sizes if s in line)
            dash = ' stroke-dasharray="6 3"' if backend == BARE else ""
            out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
            out += [
                f'<circle cx="{x(s):.1f}" cy="{y(line[s]):.1f}" r="3" fill="{colour}"/>'
                for s in sizes
                if s in line
            ]
    for number, backend in enumerate(dict.fromkeys(row["backend"] for row in rows)):
        at = TOP + 12 + 20 * number
        left = LEFT + 2 * PANEL_W + GAP + 14
        colour = COLOURS.get(backend, "#000000")
        dash = ' stroke-dasharray="6 3"' if backend == BARE else ""
        out.append(
            f'<line x1="{left}" x2="{left + 18}" y1="{at}" y2="{at}" stroke="{colour}" stroke-width="2"{dash}/>'
        )
        out.append(f'<text x="{left + 24}" y="{at + 4}">{backend}</text>')
    return "\n".join([*out, "</svg>", ""])


def write(name, title, document):
    """Write results/NAME.json, .md and, where there is a port limit, .svg."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    render(name, title, document)


def render(name, title, document):
    limit = document["port_limit"]
    (RESULTS / f"{name}.md").write_text(table(title, document["rows"], limit))
    if limit:
        suite = "gcm-aes-xpn-256"
        text = svg(f"{title}, {suite}", document["rows"], suite, document.get("beside", ()))
        (RESULTS / f"{name}.svg").write_text(text)


TITLES = {
    "cipher": "AES-GCM alone, one core, hot",
    "frames": "Whole MACsec frames, one core, memory to memory",
}

if __name__ == "__main__":
    for name, title in TITLES.items():
        render(name, title, json.loads((RESULTS / f"{name}.json").read_text()))
