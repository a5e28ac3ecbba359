"""Operators that other operators take the place of when a graph is built.

A `LinearClassifier` is a dense layer and a softmax, a fused `SkipLayerNormalization` a sum and a
normalisation: written out, every signal knows its way through them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Protocol

import onnx.parser
from onnx import FunctionProto

from ..errors import ArgumentError
from .base import Kernel


class Writer(Protocol):
    """Takes what is written in the place of a node."""

    inputs: Sequence[str]
    outputs: Sequence[str]
    opset: int  # of what is written

    def input(self, i: int) -> str:
        """Return the name of input `i`, "" where it is left away."""
        ...

    def output(self, i: int) -> str:
        """Return the name of output `i`, "" where nobody asks for it."""
        ...

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

    def function(self, body: FunctionProto, attributes: Mapping[str, Any]) -> None:
        """Add the nodes of an ONNX function of the inputs and outputs."""
        ...


class Expanded(Kernel):
    """An operator that other operators take the place of when a graph is built.

    Its author gives the `text` of an ONNX function, or writes `expand`.
    """

    needs: ClassVar = {"text": "expand"}
    main: ClassVar[str] = ""  # the operator among them that keeps the node's name
    opset: ClassVar[int] = 13  # of what is written
    text: ClassVar[str] = ""  # name (inputs) => (outputs) { nodes }; @name is an attribute

    def expand(self, writer: Writer) -> None:
        """Write the operators that compute the same."""
        writer.function(_parsed(self.text, self.opset), vars(self))


@cache
def _parsed(text: str, opset: int) -> FunctionProto:
    imports = f'"" : {opset}, "onnxplain" : 1, "com.microsoft" : 1'
    header = f'<domain: "onnxplain", opset_import: [{imports}]>'
    try:
        return onnx.parser.parse_function(f"{header} {text}")
    except onnx.parser.ParseError as error:
        raise ArgumentError(f"its text cannot be read: {_reason(error)}") from error


def _reason(error: onnx.parser.ParseError) -> str:
    """Return what the parser expected, of a message that repeats the whole text."""
    (message,) = error.args
    message = message.decode() if isinstance(message, bytes) else str(message)
    return message.strip().rpartition("\n")[2]
