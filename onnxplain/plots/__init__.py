"""Pictures of results. Importing this is cheap: the drawing library comes with the first plot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .mpl import Figure, boxplot, plot, plot_global

__all__ = ["plot", "plot_global", "boxplot", "Figure"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import mpl

    return getattr(mpl, name)
