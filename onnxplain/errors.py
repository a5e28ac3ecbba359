"""The package's own exceptions: every error a user can cause derives from `OnnxplainError`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class OnnxplainError(Exception):
    """Base of all errors that onnxplain raises on purpose."""


class ModelError(OnnxplainError, ValueError):
    """The model is no valid ONNX graph, or one that cannot be handled rightly."""


class ModelFileError(ModelError, OSError):
    """A model file, or a file of weights it refers to, cannot be read."""


class UnsupportedOpError(OnnxplainError, NotImplementedError):
    """No kernel, or no rule for the asked method, exists for a node of the graph."""


class DataError(OnnxplainError, ValueError):
    """Data given by the user cannot be used: values, number of arrays, or rows."""


class ShapeError(DataError):
    """An array has another shape than the model expects."""


class DtypeError(DataError, TypeError):
    """An array or argument has a type that cannot be used."""


class SelectionError(OnnxplainError, ValueError, LookupError):
    """An output index, a label or a name denotes nothing in this model."""


class ArgumentError(OnnxplainError, ValueError):
    """An argument of a method has a value that is not allowed."""


class UnknownArgumentError(ArgumentError, TypeError):
    """A method has no argument of this name."""


class RuleError(ArgumentError):
    """An LRP or DeepLIFT rule is unknown or cannot be used where it was asked for."""


class DeviceError(OnnxplainError, RuntimeError):
    """The asked device, or the package that drives it, is not there."""


class MissingPackageError(OnnxplainError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""


# -- words for messages, which stay short whatever a user or a file hands in -----------------------


def counted(n: int, noun: str) -> str:
    """Return "1 input", "2 inputs"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def listed(words: Iterable[Any], limit: int = 6, length: int = 30) -> str:
    """Return the first words, cut where they are long."""
    words = [str(word) for word in words]
    shown = [w if len(w) <= length else w[: length - 3] + "..." for w in words[:limit]]
    return ", ".join([*shown, "..."] if len(words) > limit else shown)


def shown(value: Any, length: int = 60) -> str:
    """Return a value as it is written in code, on one line, cut where it is long."""
    return shortened(repr(value), length)


def shortened(text: str, length: int = 200) -> str:
    """Return a text on one line; where it is long its middle is left out."""
    text = " ".join(text.split())
    half = length // 2 - 2
    return text if len(text) <= length else f"{text[:half]} ... {text[-half:]}"
