"""How all figures look: colours, marks, and layouts that a page's template completes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COLOURS = ("#2b7bba", "#d55e00", "#009e73", "#c0609a", "#a87900", "#7b68c8")
"""After Okabe and Ito, told apart by the colour-blind; darker, for 3:1 against white and near-black alike."""
GREY = "#808080"
"""Of baselines, nulls and limits."""
# Dots are for nulls alone.
DASHES = ("solid", "dash", "longdash", "dashdot", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down", "star")
LIGHT_TO_DARK = [[0, "#f1f5fa"], [1, "#6ba3d6"]]
"""A scale of one hue on which dark text is read throughout."""
CELL_TEXT = "#1f2328"
"""A cell brings its own background."""
PATTERNS = ("", "/", "x", "-", "\\", ".")

_GRID = {"light": "#e3e6ea", "dark": "#333a44"}
_TEXT = {"light": "#1f2328", "dark": "#e6e8eb"}


def template(scheme: str) -> dict[str, Any]:
    """A plotly template for a page that is `light` or `dark`: text, grid and hover labels."""
    axis = {
        "gridcolor": _GRID[scheme],
        "zerolinecolor": GREY,
        "linecolor": GREY,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": GREY,
    }
    background = {"light": "#ffffff", "dark": "#1b1f24"}[scheme]
    return {
        "layout": {
            "font": {"color": _TEXT[scheme], "size": 12, "family": "system-ui, sans-serif"},
            "colorway": list(COLOURS),
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"bgcolor": background, "font": {"color": _TEXT[scheme]}, "align": "left"},
        }
    }


def faint(colour: str, opacity: float) -> str:
    """A `#rrggbb` colour that one sees through."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def layout(
    *, x: Mapping[str, Any], y: Mapping[str, Any], height: int = 340, legend: bool = True, **more: Any
) -> dict[str, Any]:
    """A layout as wide as the page lets it be; text and grid are left to the page's template."""
    return {
        "autosize": True,
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 16, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "showlegend": legend,
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
        },
        "xaxis": {"automargin": True, **x},
        "yaxis": {"automargin": True, **y},
        **more,
    }


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with its title, units in brackets."""
    return {"title": {"text": title, "standoff": 8}, **more}


def names_axis(names: Sequence[str], **more: Any) -> dict[str, Any]:
    """An axis of names at 0, 1, 2, …: by place, so that two names that look alike stay two."""
    return {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": list(names),
        "zeroline": False,
        "showgrid": False,
        **more,
    }


def limit_line(at: float, *, text: str, across: str = "y") -> dict[str, Any]:
    """A dashed line at a value of the x axis (`across="y"`) or of the y axis, with its name."""
    along = "x" if across == "y" else "y"
    return {
        "type": "line",
        f"{along}0": at,
        f"{along}1": at,
        f"{along}ref": along,
        f"{across}0": 0,
        f"{across}1": 1,
        f"{across}ref": f"{across} domain",
        "line": {"color": GREY, "width": 1.5, "dash": "dash"},
        "label": {
            "text": text,
            "textposition": "end",
            "font": {"size": 11},
            **(
                {"textangle": 0, "xanchor": "left", "yanchor": "top"}
                if across == "y"
                else {"yanchor": "bottom"}
            ),
        },
    }
