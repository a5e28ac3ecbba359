"""Sequences and optionals, resolved when a graph is built: what they hold is known by name.

A sequence is a list of tensor names; a tensor cut into pieces of one length is remembered as that,
because how many there are may depend on its shape. What takes tensors out of a sequence becomes
`Identity`, `Slice` or `Concat`, through which every signal knows its way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np

from ..arrays import to_host
from ..errors import ModelError, UnsupportedOpError, shown
from .bodies import bodies_of, inner_nodes
from .expand import free_name
from .graph import Node, fold
from .load import ValueSpec

OPS = frozenset(
    {
        *("SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SequenceAt"),
        *("SequenceLength", "SplitToSequence", "ConcatFromSequence"),
        *("Optional", "OptionalGetElement", "OptionalHasElement"),
    }
)
OPSET = 13  # of what is written
MAX_LENGTH = 10_000  # of a sequence


@dataclass(frozen=True)
class Pieces:
    """A tensor cut into pieces of `size` along an axis, the last of them perhaps shorter."""

    tensor: str
    axis: int
    size: int
    squeezed: bool  # the axis, of length one in each piece, is dropped


Held: TypeAlias = "list[str] | Pieces | str | None"  # a sequence, or what an optional holds


def resolve(
    nodes: Sequence[Node],
    weights: Mapping[str, np.ndarray],
    inputs: Iterable[ValueSpec],
    wanted: Iterable[str],
) -> tuple[list[Node], dict[str, np.ndarray]]:
    """Return nodes and weights without sequences and optionals.

    Raises
    ------
    UnsupportedOpError
        If the length of a sequence depends on the data, or a sequence leaves the graph.
    ModelError
        If a position is outside of a sequence.
    """
    if not any(node.op in OPS and not node.domain for node in nodes):
        return list(nodes), dict(weights)
    resolver = _Resolver(nodes, dict(weights), inputs)
    for node in nodes:
        resolver.take(node)
    for name in wanted:
        if name in resolver.held:
            raise UnsupportedOpError(
                f"output {shown(name)} is a sequence or an optional: explain the tensors in it, "
                "convert(model, outputs=[...])"
            )
    return resolver.nodes, resolver.weights


class _Resolver:
    """Walks through the nodes of a graph and remembers what each sequence holds."""

    def __init__(
        self, nodes: Sequence[Node], weights: dict[str, np.ndarray], inputs: Iterable[ValueSpec]
    ):
        self.weights = weights
        self.nodes: list[Node] = []
        self.held: dict[str, Held] = {}
        self.shapes = {i.name: i.shape for i in inputs}
        self.tensors = {name for n in nodes for name in (*n.inputs, *n.outputs)} | weights.keys()
        self.names = {node.name for node in nodes}
        self.node = nodes[0]

    def take(self, node: Node) -> None:
        """Resolve a node, or keep it."""
        self.node = node
        if node.op in OPS and not node.domain:
            getattr(self, node.op)()
            return
        left = fold([node], self.weights)[0]
        if len(left) != 1 or left[0] is not node:
            for inner in left:  # of the branch that is taken
                self.take(inner)
            return
        if any(name in self.held for name in node.inputs):
            self._refuse("sequences and optionals do not go through this operator")
        if any(inner.op in OPS for body in bodies_of(node) for inner in inner_nodes(body.nodes)):
            self._refuse("it makes or reads sequences inside")
        self.nodes.append(node)

    # -- what operators do ------------------------------------------------------------------------

    def SequenceConstruct(self) -> None:
        self._hold(list(self.node.inputs))

    def SequenceEmpty(self) -> None:
        self._hold([])

    def SequenceInsert(self) -> None:
        items = self._list()
        at = len(items) if not self.node.input(2) else self._position(len(items) + 1, 2)
        self._hold([*items[:at], self.node.inputs[1], *items[at:]])

    def SequenceErase(self) -> None:
        items = self._list()
        at = len(items) - 1 if not self.node.input(1) else self._position(len(items), 1)
        self._hold([*items[:at], *items[at + 1 :]])

    def SequenceAt(self) -> None:
        sequence = self._sequence()
        if isinstance(sequence, list):
            chosen = sequence[self._position(len(sequence), 1)]
            self._write("Identity", chosen, output=self.node.outputs[0])
        else:
            self._piece(sequence, self._constant(1, "a position"))

    def SequenceLength(self) -> None:
        sequence = self._sequence()
        if isinstance(sequence, list):
            self.weights[self.node.outputs[0]] = np.array(len(sequence), np.int64)
            return
        shape = self._write("Shape", sequence.tensor)
        length = self._write("Gather", shape, self._weight(np.int64(sequence.axis)), axis=0)
        more = self._write("Add", length, self._weight(np.int64(sequence.size - 1)))
        size = self._weight(np.int64(sequence.size))
        self._write("Div", more, size, output=self.node.outputs[0])

    def SplitToSequence(self) -> None:
        node = self.node
        axis = int(node.attributes.get("axis", 0))
        squeezed = not node.input(1) and not node.attributes.get("keepdims", 1)
        split = np.array(1) if not node.input(1) else self._constant(1, "the lengths")
        if split.ndim:
            if len(split) > MAX_LENGTH:
                raise ModelError(f"{node.label} makes {len(split)} tensors, more than {MAX_LENGTH}")
            self._hold(self._split(axis, split, squeezed))
            return
        size, n = int(split), self._length(node.inputs[0], axis)
        if size < 1:
            raise ModelError(f"{node.label} splits into pieces of length {size}")
        if n is None or n > size * MAX_LENGTH:
            self._hold(Pieces(node.inputs[0], axis, size, squeezed))
            return
        sizes = [min(size, n - start) for start in range(0, n, size)]
        self._hold(self._split(axis, np.array(sizes, np.int64), squeezed))

    def ConcatFromSequence(self) -> None:
        node, sequence = self.node, self._sequence()
        axis, new = int(node.attributes["axis"]), bool(node.attributes.get("new_axis", 0))
        if isinstance(sequence, Pieces):
            if new or sequence.squeezed or axis != sequence.axis:
                self._refuse("how many tensors the sequence has depends on the data")
            self._write("Identity", sequence.tensor, output=node.outputs[0])
            return
        if not sequence:
            raise ModelError(f"{node.label} joins a sequence of no tensors")
        if new:
            axes = self._weight(np.array([axis], np.int64))
            sequence = [self._write("Unsqueeze", name, axes) for name in sequence]
        self._write("Concat", *sequence, output=node.outputs[0], axis=axis)

    def Optional(self) -> None:
        name = self.node.input(0)
        self._hold(self.held.get(name, name or None))

    def OptionalGetElement(self) -> None:
        name = self.node.inputs[0]
        held = self.held.get(name, name)
        if held is None:
            raise ModelError(f"{self.node.label} takes what is in an optional that is empty")
        if isinstance(held, str):
            self._write("Identity", held, output=self.node.outputs[0])
        else:
            self._hold(held)

    def OptionalHasElement(self) -> None:
        name = self.node.input(0)
        has = bool(name) and self.held.get(name, name) is not None
        self.weights[self.node.outputs[0]] = np.array(has)

    # -- reading ----------------------------------------------------------------------------------

    def _refuse(self, why: str) -> NoReturn:
        raise UnsupportedOpError(f"{self.node.label}: {why}; export the model without sequences")

    def _hold(self, held: Held) -> None:
        if isinstance(held, list) and len(held) > MAX_LENGTH:
            raise ModelError(f"{self.node.label} makes a sequence longer than {MAX_LENGTH}")
        self.held[self.node.outputs[0]] = held

    def _sequence(self) -> list[str] | Pieces:
        held = self.held.get(self.node.inputs[0])
        if not isinstance(held, list | Pieces):
            self._refuse("its sequence comes from outside of the graph")
        return held

    def _list(self) -> list[str]:
        sequence = self._sequence()
        if isinstance(sequence, Pieces):
            self._refuse("how many tensors the sequence has depends on the data")
        return sequence

    def _constant(self, i: int, what: str) -> np.ndarray:
        value = self.weights.get(self.node.inputs[i])
        if value is None:
            self._refuse(f"{what} depends on the data")
        return to_host(value)

    def _position(self, n: int, i: int) -> int:
        """Return a position below n, counted from the front."""
        at = int(self._constant(i, "a position").reshape(()))
        if not -n <= at < n:
            raise ModelError(f"{self.node.label} asks for position {at} of {n}")
        return at % n

    def _length(self, tensor: str, axis: int) -> int | None:
        """Return the length of an axis, where the file tells it."""
        shape = self.shapes.get(tensor)
        shape = self.weights[tensor].shape if tensor in self.weights else shape
        if not shape or not -len(shape) <= axis < len(shape) or axis % len(shape) == 0:
            return None  # a number of rows that the file tells is not kept to
        n = shape[axis]
        return n if isinstance(n, int) else None

    # -- writing ----------------------------------------------------------------------------------

    def _split(self, axis: int, sizes: np.ndarray, squeezed: bool) -> list[str]:
        """Write a Split, and return the names of its pieces."""
        if not len(sizes):
            return []
        pieces = tuple(self._tensor("Split") for _ in sizes)
        lengths = self._weight(sizes.astype(np.int64))
        self._write("Split", self.node.inputs[0], lengths, output=pieces, axis=axis)
        if not squeezed:
            return list(pieces)
        axes = self._weight(np.array([axis], np.int64))
        return [self._write("Squeeze", name, axes) for name in pieces]

    def _piece(self, pieces: Pieces, position: np.ndarray) -> None:
        """Write the Slice that is one piece, counted from the front, or from the end if of 1."""
        at = int(position.reshape(()))
        if at < 0 and pieces.size > 1:
            self._refuse("how many tensors the sequence has depends on the data")
        start = at * pieces.size
        end = start + pieces.size if at != -1 else np.iinfo(np.int64).max
        bounds = [self._weight(np.array([v], np.int64)) for v in (start, end, pieces.axis)]
        output = self.node.outputs[0]
        if not pieces.squeezed:
            self._write("Slice", pieces.tensor, *bounds, output=output)
            return
        self._write(
            "Squeeze", self._write("Slice", pieces.tensor, *bounds), bounds[2], output=output
        )

    def _weight(self, value: Any) -> str:
        name = free_name(f"{self.node.name}.weight", self.tensors)
        self.weights[name] = np.asarray(value)
        return name

    def _tensor(self, op: str) -> str:
        return free_name(f"{self.node.outputs[0]}/{op}", self.tensors)

    def _write(
        self, op: str, *inputs: str, output: str | tuple[str, ...] = "", **attributes: Any
    ) -> str:
        output = output or self._tensor(op)
        outputs = (output,) if isinstance(output, str) else output
        name = free_name(f"{self.node.name}/{op}", self.names)
        joined = self.node.joined or (self.node.name,)
        self.nodes.append(Node(name, op, inputs, outputs, attributes, OPSET, "", joined))
        return outputs[0]
