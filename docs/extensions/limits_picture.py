"""docs/limits.png, from the tables that `make science-table` writes into docs/science.md."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1]
CASES = {
    ("one hinge", "0.1", "0"): "one hinge, signal-to-noise 0.1",
    ("one hinge", "0.03", "0"): "0.03",
    ("one hinge", "0.01", "0"): "0.01: too little signal",
    ("one hinge", "0.1", "3"): "0.1, poses off by 3 degrees",
    ("one hinge in a micelle", "0.1", "0"): "in a micelle",
    ("two arms", "0.1", "0"): "two motions",
    ("large complex, two domains", "0.1", "0"): "two small domains of a large complex",
    ("two states, none between", "0.1", "0"): "two states, none between",
}
FIRST, LAST = "<!-- figures of make science -->", "<!-- end of figures -->"
GOOD, BAD, GREY = "#0072b2", "#d55e00", "#6b7785"  # told apart by the colour-blind


def states(text: str) -> dict[tuple[str, ...], list[list[float]]]:
    """Of each case the FSC with the truth of its states: rigid, flex, ceiling."""
    found: dict[tuple[str, ...], list[list[float]]] = {}
    for line in text.partition(FIRST)[2].partition(LAST)[0].splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if len(cells) == 8 and cells[0] != "data" and "-" not in cells[0][:1]:
            found.setdefault(tuple(cells[:3]), []).append([float(cell) for cell in cells[4:7]])
    return found


def draw(text: str) -> Figure:
    """Each state as an arrow from the rigid to the flexible map, with the ceiling as a bar."""
    found = states(text)
    figure = Figure(figsize=(7.6, 3.9), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for row, case in enumerate(CASES):
        for number, (rigid, flex, ceiling) in enumerate(found[case]):
            y = -row + 0.26 * (1 - number)
            axes.plot([ceiling] * 2, [y - 0.1, y + 0.1], color=GREY, lw=2.5)
            colour = GOOD if flex >= rigid else BAD
            axes.annotate("", (flex, y), (rigid, y), arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.8})
    axes.set_yticks([-row for row in range(len(CASES))], list(CASES.values()), fontsize=8)
    axes.set_ylim(-len(CASES) + 0.45, 0.55)
    axes.set_xlim(0.55, 0.95)
    axes.set_xlabel(
        "mean FSC with the true map of a state: from rigid to flex (arrow), and the ceiling (bar)", fontsize=8
    )
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e3e8ed")
    axes.set_axisbelow(True)
    return figure


def main() -> None:
    draw((DOCS / "science.md").read_text()).savefig(DOCS / "limits.png", metadata={"Software": None})


if __name__ == "__main__":
    main()
