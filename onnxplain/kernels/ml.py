"""Operators of ONNX's second domain, ai.onnx.ml: what scikit-learn's models are exported to.

Linear models and scalers are no kernels of their own: they are written with ONNX's own operators
when a graph is built, so that a `LinearClassifier` is the dense layer and softmax that it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import Array, divide, namespace, on_device_of, to_host
from ..errors import ModelError, UnsupportedOpError, listed, shown
from .constants import Step
from .expanded import Expanded, Writer
from .families import Elementwise
from .normalisation import UnitNorm
from .routing import Gather

DOMAIN = "ai.onnx.ml"

_TREES = (
    "trees have no gradients and no layers to walk back; explain them with a tree explainer, "
    "such as shap.TreeExplainer on the original model"
)
_DISTANCES = "models of support vectors with kernels are not supported; linear ones are"
_TABLES = "encode such columns before the model, and export what comes after"
_REFUSED = {
    "TreeEnsemble": _TREES,
    "TreeEnsembleClassifier": _TREES,
    "TreeEnsembleRegressor": _TREES,
    "SVMClassifier": _DISTANCES,
    "SVMRegressor": _DISTANCES,
    "OneHotEncoder": _TABLES,
    "CategoryMapper": _TABLES,
    "DictVectorizer": _TABLES,
    "CastMap": _TABLES,
}


def why_refused(op: str, domain: str) -> str | None:
    """Say why an operator has no kernel and what to do instead, where there is more to say."""
    return _REFUSED.get(op) if domain == DOMAIN else None


# -- written with ONNX's own operators ------------------------------------------------------------


def _as_float(writer: Writer, tensor: str) -> str:
    return writer.node("Cast", tensor, to=1)


class Scaler(Expanded, op="Scaler", domain=DOMAIN):
    """y = (x - offset) scale."""

    main = "Mul"

    def expand(self, writer):
        x = _as_float(writer, writer.inputs[0])
        offset = 0.0 if self.offset is None else self.offset
        scale = 1.0 if self.scale is None else self.scale
        centred = writer.node("Sub", x, writer.weight(np.float32(offset)))
        writer.node("Mul", centred, writer.weight(np.float32(scale)), output=writer.outputs[0])


class FeatureVectorizer(Expanded, op="FeatureVectorizer", domain=DOMAIN):
    """y = the inputs side by side."""

    main = "Concat"

    def expand(self, writer):
        parts = [_as_float(writer, tensor) for tensor in writer.inputs]
        writer.node("Concat", *parts, output=writer.outputs[0], axis=1)


_LAST = {
    "NONE": None,
    "LOGISTIC": ("Sigmoid", {}),
    "SOFTMAX": ("Softmax", {"axis": -1}),
}


class LinearModel(Expanded):
    """f(x W + b), f the identity, a sigmoid or a softmax."""

    main = "Gemm"

    def setup(self):
        if self.post_transform not in _LAST:
            raise UnsupportedOpError(
                f"the transform {shown(self.post_transform)} of its scores is not supported, only "
                f"{listed(_LAST)}; export the raw scores"
            )
        n = self.n_scores()
        w, b = (np.float32(() if v is None else v) for v in (self.coefficients, self.intercepts))
        if n < 1 or w.size == 0 or w.size % n or b.size not in (0, n):
            raise ModelError(
                f"{w.size} coefficients and {b.size} intercepts do not make {n} scores; "
                "export the model again"
            )
        self.w, self.b = w.reshape(n, -1), b if b.size else np.zeros(n, np.float32)

    def n_scores(self) -> int:
        """Return the number of rows of coefficients."""
        raise NotImplementedError

    def write(self, writer: Writer, output: str | None) -> str:
        """Write f(x W + b) and return the tensor of the scores x W + b."""
        x = _as_float(writer, writer.inputs[0])
        parameters = writer.weight(self.w), writer.weight(self.b)
        last = _LAST[self.post_transform]
        scores = writer.node("Gemm", x, *parameters, output=None if last else output, transB=1)
        if last and output:
            writer.node(last[0], scores, output=output, **last[1])
        return scores


class LinearRegressor(LinearModel, op="LinearRegressor", domain=DOMAIN):
    """y = f(x W + b), one column per target."""

    def n_scores(self):
        if self.targets == 1 and self.post_transform != "NONE":
            raise UnsupportedOpError(
                f"the transform {self.post_transform} of a single score is applied by some "
                "runtimes and not by others; export the raw score"
            )
        return self.targets

    def expand(self, writer):
        self.write(writer, writer.outputs[0])


class LinearClassifier(LinearModel, op="LinearClassifier", domain=DOMAIN):
    """label = the class of the largest score, y = f(x W + b), one column per class."""

    def n_scores(self):
        self.classes = class_labels(vars(self))
        given = 0 if self.intercepts is None else len(self.intercepts)
        return given or len(self.classes)

    def setup(self):
        super().setup()
        n = len(self.w)
        if len(self.classes) != n:
            self.w, self.b = self._both_classes()

    def _both_classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Write one row for two classes as two: the first has the opposite log-odds."""
        n, labels = len(self.w), len(self.classes)
        if (n, labels) != (1, 2):
            raise ModelError(f"{n} scores are given for {labels} classes; export the model again")
        if self.post_transform != "LOGISTIC":
            raise UnsupportedOpError(
                "one row of coefficients for two classes leaves open what the score of the other "
                "is; export the model with coefficients for both"
            )
        return np.concatenate([-self.w, self.w]), np.concatenate([-self.b, self.b])

    def expand(self, writer):
        label, probabilities = (*writer.outputs, "")[:2]
        scores = self.write(writer, probabilities)
        if label:
            best = writer.node("ArgMax", scores, axis=1, keepdims=0)
            texts = isinstance(self.classes[0], str)
            classes = writer.weight(np.array(self.classes, object if texts else np.int64))
            writer.node("Gather", classes, best, output=label, axis=0)


def class_labels(attributes: Any) -> list[Any]:
    """Return the classes that the attributes of a node name, none if they do not."""
    keys = ("classlabels_strings", "classlabels_ints", "classlabels_int64s")
    return next((list(attributes[key]) for key in keys if attributes.get(key)), [])


# -- kernels --------------------------------------------------------------------------------------


class ArrayFeatureExtractor(Gather, op="ArrayFeatureExtractor", domain=DOMAIN):
    """y = the columns of x at these positions."""

    axis = -1

    def forward(self, x, indices):
        y = super().forward(x, indices.reshape(-1))
        return y[None] if x.ndim == 1 else y


class Imputer(Elementwise, op="Imputer", domain=DOMAIN):
    """y = x, and a fixed value of each column where x is missing."""

    def _missing(self, x: Array) -> Array:
        # Which of the two attributes counts is told by the type of x; both have a default.
        value = self.replaced_value_float if x.dtype.kind == "f" else self.replaced_value_int64
        return namespace(x).isnan(x) if value != value else x == x.dtype.type(value)

    def forward(self, x):
        given = self.imputed_value_floats or self.imputed_value_int64s
        filling = on_device_of(np.array(given, x.dtype), x)
        return namespace(x).where(self._missing(x), filling, x)

    def slope(self, x, y):
        return (~self._missing(x)).astype(x.dtype)

    def secant(self, x, y, x0, y0):
        xp = namespace(x, x0)
        filled = self._missing(x) | self._missing(x0)
        quotient = divide(y - y0, x - x0)  # one filling, another number: no limit to be close to
        return xp.where(filled, quotient, x.dtype.type(1)).astype(x.dtype, copy=False)


class Normalizer(UnitNorm, op="Normalizer", domain=DOMAIN):
    """y = x / s, s the maximum, the sum of magnitudes or the length of a row; x where s = 0."""

    def setup(self):
        if self.norm not in ("MAX", "L1", "L2"):
            raise ModelError(f"the norm is {shown(self.norm)}, expected MAX, L1 or L2")
        self.p = 1 if self.norm == "L1" else 2

    def _norm(self, x):
        if x.ndim > 2:
            raise UnsupportedOpError(
                f"Normalizer works on the rows of a matrix, got the shape {x.shape}"
            )
        return x.max(axis=-1, keepdims=True) if self.norm == "MAX" else super()._norm(x)

    def forward(self, x):
        return super().forward(x if x.dtype.kind == "f" else x.astype(np.float32))

    def _inverses(self, s, s0):
        if self.norm != "MAX":
            return super()._inverses(s, s0)
        return 1 / self._divisor(s), 1 / self._divisor(s0)

    def _secant(self, x, x0, s, s0):
        return self._credit(x, x0, s - s0) if self.norm == "MAX" else super()._secant(x, x0, s, s0)

    def _credit(self, x: Array, x0: Array, ds: Array) -> Array:
        """Credit a rise to where x has its maximum, a fall to where the reference has it."""
        xp = namespace(x, x0)
        at_x, at_x0 = self._winner(x), self._winner(x0)
        dx = x - x0
        rise = divide(ds, (dx * at_x).sum(axis=-1, keepdims=True), 1)
        fall = divide(ds, (dx * at_x0).sum(axis=-1, keepdims=True))
        return xp.where(ds >= 0, rise * at_x, fall * at_x0).astype(dx.dtype, copy=False)

    def _winner(self, x: Array) -> Array:
        xp = namespace(x)
        first = xp.arange(x.shape[-1]) == x.argmax(axis=-1)[..., None]
        return first.astype(x.dtype)


class Binarizer(Step, op="Binarizer", domain=DOMAIN):
    """y = 1 where x > threshold, else 0."""

    def forward(self, x):
        return (x > self.threshold).astype(x.dtype)


class LabelEncoder(Step, op="LabelEncoder", since=2, domain=DOMAIN):
    """y = the value that stands for each key, a default for unknown ones."""

    types = {  # noqa: RUF012 - a table, never changed
        "strings": object,
        "int64s": np.int64,
        "floats": np.float32,
    }

    def setup(self):
        keys, values = self._column("keys"), self._column("values")
        if keys.shape != values.shape:
            raise ModelError(f"{keys.size} keys are given for {values.size} values")
        self.table = dict(zip(map(_key, keys.tolist()), values.tolist(), strict=True))
        self.made = values.dtype
        self.default = self._default()

    def _column(self, what: str) -> np.ndarray:
        tensor = getattr(self, f"{what}_tensor", None)
        if tensor is not None:
            return tensor
        for kind, dtype in self.types.items():
            given = getattr(self, f"{what}_{kind}")
            if given is not None:
                return np.array(given, dtype)
        raise ModelError(f"it has no {what}; export the model again")

    def _default(self) -> Any:
        tensor = getattr(self, "default_tensor", None)
        if tensor is not None:
            return tensor.reshape(-1)[0]
        kind = {"O": "string", "i": "int64", "f": "float"}.get(self.made.kind, "float")
        return getattr(self, f"default_{kind}")

    def forward(self, x):
        found = [self.table.get(_key(v), self.default) for v in to_host(x).ravel().tolist()]
        return np.array(found, self.made).reshape(x.shape)


def _key(value: Any) -> Any:
    """Return what a table finds: NaN is not equal to itself, and texts may be bytes."""
    if isinstance(value, bytes):
        return value.decode()
    return "NaN" if value != value else value
