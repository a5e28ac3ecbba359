"""Pictures of results. Importing this is cheap: the drawing library comes with the first plot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .figures import beeswarm, boxplot, compare, plot, plot_global, waterfall
    from .mpl import Figure

__all__ = ["plot", "plot_global", "boxplot", "beeswarm", "waterfall", "compare", "Figure"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "Figure":
        from .mpl import Figure

        return Figure
    from . import figures

    return getattr(figures, name)
