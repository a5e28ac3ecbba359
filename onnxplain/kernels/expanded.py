"""Operators that other operators take the place of when a graph is built.

A `LinearClassifier` is a dense layer and a softmax, a fused `SkipLayerNormalization` a sum and a
normalisation: written out, every signal knows its way through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from .base import Kernel


class Writer(Protocol):
    """Takes what is written in the place of a node."""

    inputs: Sequence[str]
    outputs: Sequence[str]

    def constant(self, tensor: str) -> Any:
        """Return the value of a weight, None if the tensor is computed."""
        ...

    def weight(self, value: Any) -> str:
        """Add a weight and return its name."""
        ...

    def node(
        self,
        op: str,
        *inputs: str,
        output: str | Sequence[str] | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node and return its (first) output."""
        ...


class Expanded(Kernel):
    """An operator that other operators take the place of when a graph is built."""

    main: ClassVar[str] = ""  # the operator among them that keeps the node's name
    opset: ClassVar[int] = 13  # of what is written

    def expand(self, writer: Writer) -> None:
        """Write the operators that compute the same."""
        raise NotImplementedError
