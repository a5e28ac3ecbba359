"""Fitted models of scikit-learn: networks and linear models, alone or at the end of a pipeline.

scikit-learn itself is not imported; its classes are known by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxplain.errors import DtypeError, ModelError, ShapeError, listed, shown

from .network import Network

if TYPE_CHECKING:
    import pandas as pd

_HIDDEN = {"identity": None, "logistic": "Sigmoid", "tanh": "Tanh", "relu": "Relu"}
_LAST = {"identity": None, "logistic": "Sigmoid", "softmax": "Softmax", "exp": "Exp"}


def convert(model: Any, *, input_dim: Any = None) -> onnx.ModelProto:
    """Make an ONNX model of a fitted model of scikit-learn.

    Parameters
    ----------
    model : MLPClassifier, MLPRegressor, linear or logistic model, or Pipeline that ends in one
        Before the model a pipeline may have scalers, PCA, TruncatedSVD, feature selection,
        imputers, encoders and ColumnTransformers. A finished search (GridSearchCV) stands for its
        best model, a TransformedTargetRegressor predicts in the units of the target.
    input_dim : any, optional
        Not needed, the model says it.

    Returns
    -------
    onnx.ModelProto
        In float64, with the names of the features and classes. Classifiers give `predict_proba`:
        one column per class, also for two classes, where the values before the sigmoid are the
        log-odds of either class; a multi-label one gives one column per label. Those without
        probabilities give `decision_function`, regressors `predict`.

    Raises
    ------
    ModelError
        If the model, or a step of it, is not fitted or not supported.

    Notes
    -----
    The inputs are the raw columns where these are numbers. A column that is imputed or encoded has
    no gradient: its imputed or encoded columns are the inputs, named "column" or "column=value";
    `encode` makes this table from the raw one. Columns that the pipeline drops are inputs without
    influence as long as nothing is imputed or encoded, else they are left out.

    Examples
    --------
    >>> import numpy as np, onnxplain as ox
    >>> from sklearn.linear_model import LogisticRegression
    >>> x = np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    >>> model = LogisticRegression().fit(x, ["no", "no", "yes", "yes"])
    >>> converter = ox.convert(model, dtype="double")
    >>> converter.output_names
    [[['no', 'yes']]]
    >>> bool(np.allclose(converter(x)[0], model.predict_proba(x)))
    True
    """
    return _Conversion(model).proto()


def encode(model: Any, data: Any) -> pd.DataFrame:
    """Return the table of numbers that the converted model takes.

    Parameters
    ----------
    model : Pipeline
        What was given to `convert`.
    data : data frame or array (rows, raw columns)
        What the model's own `predict` takes.

    Returns
    -------
    pandas.DataFrame (rows, inputs)
        Columns imputed and encoded as the pipeline does it, others as they are; its column names
        are the `input_names` of the converter.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import OneHotEncoder
    >>> from onnxplain_converters.sklearn import encode
    >>> data = pd.DataFrame({"colour": ["red", "blue", "red"]})
    >>> model = make_pipeline(OneHotEncoder(), LinearRegression()).fit(data, [1.0, 2.0, 1.0])
    >>> encode(model, data)
       colour=blue  colour=red
    0          0.0         1.0
    1          1.0         0.0
    2          0.0         1.0
    """
    return _Conversion(model).encoded(data)


# -- where columns come from ----------------------------------------------------------------------


@dataclass(frozen=True)
class Raw:
    """Columns of the raw table that at most imputers and encoders have touched so far.

    `steps` are (transformer, columns it is applied to); the last one made the columns.
    """

    columns: tuple[int, ...]  # the raw column behind each
    labels: tuple[str, ...]
    steps: tuple[Any, ...] = ()
    positions: tuple[int, ...] = ()  # which columns of the last step's result
    encoded: bool = False

    def select(self, positions: Sequence[int]) -> Raw:
        return replace(
            self,
            columns=tuple(self.columns[i] for i in positions),
            labels=tuple(self.labels[i] for i in positions),
            positions=tuple(self.positions[i] for i in positions),
        )


@dataclass(frozen=True)
class Slot:
    """One input of the converted model."""

    column: int
    label: str
    steps: tuple[Any, ...]  # (transformer, columns it is applied to), the first one to raw columns
    position: int


class _Conversion:
    """Builds the network of a model step by step.

    A table on its way through the pipeline is either `Raw` or the name of a tensor with its width.
    """

    def __init__(self, model: Any) -> None:
        self.network = Network()
        self.slots: dict[Slot, None] = {}
        self.gathers: list[tuple[str, list[Slot]]] = []
        steps = _steps(model)
        self.n_raw, self.raw_names = _raw_columns([model, *(step for _, step in steps)])
        labels = tuple(self.raw_names or [f"X{i + 1}" for i in range(self.n_raw)])
        everything = tuple(range(self.n_raw))
        self.everything = Raw(everything, labels, (), everything)
        self._build(steps)

    def _build(self, steps: list[tuple[str, Any]]) -> None:
        table: Any = self.everything
        targets = [step for step in steps if isinstance(step[1], _Target)]
        *before, (name, model) = [step for step in steps if step not in targets]
        for inner, step in before:
            table = self.transform(table, step, inner)
        if model is None or isinstance(model, str):
            raise ModelError("the pipeline has no model at its end")
        kind = _kind(model)
        if kind not in _MODELS:
            what = "a transformer, not a model" if kind in _TRANSFORMERS else "not supported"
            raise ModelError(f"{_called(name, model)} is {what}; expected {listed(_MODELS, 30)}")
        x, _ = self.tensor(table)
        self.output, self.n_outputs, self.classes = _MODELS[kind](self.network, model, x, name)
        for inner, target in targets:
            self.output = self.original_target(target.transformer, inner)
        if not any(slot.steps for slot in self.slots):
            for slot in self._slots_of(self.everything):
                self.slots[slot] = None
        self._finish()

    def _finish(self) -> None:
        """Give each input its place: the order of the raw columns, then of what they became."""
        self.inputs = sorted(self.slots, key=lambda slot: slot.column)
        place = {slot: i for i, slot in enumerate(self.inputs)}
        nodes = {node.output[0]: node for node in self.network.nodes}
        for tensor, slots in self.gathers:
            places = [place[slot] for slot in slots]
            if places == list(range(len(self.inputs))):
                self.network.nodes.remove(nodes[tensor])
                self.network.rename(tensor, self.network.input)
                continue
            indices = self.network.constant(places, f"{tensor}.columns", np.int64)
            nodes[tensor].input.append(indices)

    def proto(self) -> onnx.ModelProto:
        own = self.raw_names or any(slot.steps for slot in self.inputs)
        labels = [slot.label for slot in self.inputs] if own else None
        return self.network.model(
            self.output, len(self.inputs), self.n_outputs, labels, self.classes
        )

    def encoded(self, data: Any) -> pd.DataFrame:
        import pandas as pd

        table = self._raw_table(data)
        blocks = {slot.steps: _applied(table, slot.steps) for slot in self.inputs}
        columns = [
            _numbers(blocks[slot.steps][:, slot.position], slot.label) for slot in self.inputs
        ]
        labels = [slot.label for slot in self.inputs]
        index = getattr(data, "index", None)
        return pd.DataFrame(np.stack(columns, axis=1), index=index, columns=labels)

    def _raw_table(self, data: Any) -> Any:
        """Return the data, columns of a frame in the order of the training."""
        if hasattr(data, "iloc") and self.raw_names:
            missing = [name for name in self.raw_names if name not in data.columns]
            if missing:
                raise ShapeError(f"data has no columns {listed(missing)}, which the model expects")
            data = data[self.raw_names]
        table = data if hasattr(data, "iloc") else np.asarray(data)
        if table.ndim != 2 or table.shape[1] != self.n_raw:
            raise ShapeError(
                f"data has the shape {table.shape}, the model expects (rows, {self.n_raw})"
            )
        return table

    # -- tables

    def _slots_of(self, raw: Raw) -> list[Slot]:
        return [
            Slot(column, label, raw.steps, position)
            for column, label, position in zip(raw.columns, raw.labels, raw.positions, strict=True)
        ]

    def tensor(self, table: Any) -> tuple[str, int]:
        """Return the tensor of a table and its width; raw columns become inputs by that."""
        if not isinstance(table, Raw):
            return table
        slots = self._slots_of(table)
        self.slots.update(dict.fromkeys(slots))
        tensor = self.network.node("Gather", self.network.input, axis=1)
        self.gathers.append((tensor, slots))
        return tensor, len(slots)

    def select(self, table: Any, columns: Sequence[int]) -> Any:
        if isinstance(table, Raw):
            return table.select(columns)
        x, n = table
        if list(columns) == list(range(n)):
            return table
        indices = self.network.constant(columns, dtype=np.int64)
        return self.network.node("Gather", x, indices, axis=1), len(columns)

    def joined(self, tables: list[Any]) -> Any:
        if len(tables) == 1:
            return tables[0]
        if tables and all(isinstance(t, Raw) and t.steps == tables[0].steps for t in tables):
            return _side_by_side(tables)
        parts = [self.tensor(t) for t in tables if _width(t)]
        if not parts:
            raise ModelError("the ColumnTransformer passes no column to the model")
        x = self.network.node("Concat", *(x for x, _ in parts), axis=1)
        return x, sum(n for _, n in parts)

    # -- steps

    def transform(self, table: Any, step: Any, name: str) -> Any:
        """Return the table after a step of the pipeline."""
        if step is None or isinstance(step, str):
            if step == "drop":
                return self.select(table, [])
            return table  # "passthrough"
        kind = _kind(step)
        if kind not in _TRANSFORMERS:
            raise ModelError(
                f"{_called(name, step)} is not supported before a model; known are "
                f"{listed(_TRANSFORMERS, 30)}"
            )
        return _TRANSFORMERS[kind](self, table, step, name)

    def scaled(
        self, table: Any, name: str, minus: Any = None, over: Any = None, times: Any = None,
        plus: Any = None, limits: Any = None,
    ) -> Any:  # fmt: skip
        """Return (x - minus) / over * times + plus, clipped to the limits; None leaves away."""
        x, n = self.tensor(table)
        for op, value in (("Sub", minus), ("Div", over), ("Mul", times), ("Add", plus)):
            if value is not None:
                x = self.network.node(op, x, self.network.constant(value), name=f"{name}_{op}")
        if limits is not None:
            low, high = (self.network.constant(float(v)) for v in limits)
            x = self.network.node("Clip", x, low, high, name=f"{name}_Clip")
        return x, n

    def original_target(self, step: Any, name: str) -> str:
        """Return the output in the units that the target had before it was transformed."""
        kind, y = _kind(step), (self.output, self.n_outputs)
        inverse = getattr(step, "inverse_func", None)
        if kind == "FunctionTransformer" and inverse in (np.exp, np.expm1):
            back = self.network.node("Exp", self.output, name="Target_Exp"), self.n_outputs
            return self.scaled(back, "Target", minus=1.0 if inverse is np.expm1 else None)[0]
        if kind == "FunctionTransformer" and step.func is None and step.inverse_func is None:
            return self.output
        if kind == "MinMaxScaler" and not step.clip:
            return self.scaled(y, "Target", minus=step.min_, over=step.scale_)[0]
        plus = {"StandardScaler": "mean_", "RobustScaler": "center_", "MaxAbsScaler": ""}
        if kind not in plus:
            raise ModelError(
                f"the target of {_called(name, step)} cannot be transformed back; known are "
                f"{listed(plus)}, MinMaxScaler, and the functions np.exp and np.expm1"
            )
        shift = getattr(step, plus[kind], None)
        return self.scaled(y, "Target", times=step.scale_, plus=shift)[0]


def _width(table: Any) -> int:
    return len(table.columns) if isinstance(table, Raw) else table[1]


def _side_by_side(tables: list[Raw]) -> Raw:
    return replace(
        tables[0],
        columns=sum((t.columns for t in tables), ()),
        labels=sum((t.labels for t in tables), ()),
        positions=sum((t.positions for t in tables), ()),
    )


def _applied(table: Any, steps: tuple[Any, ...]) -> np.ndarray:
    """Return what transformers make of columns of the raw table."""
    for applied, columns in steps:
        part = list(columns)
        selected = table.iloc[:, part] if hasattr(table, "iloc") else table[:, part]
        if hasattr(selected, "iloc") and not hasattr(applied.step, "feature_names_in_"):
            selected = selected.to_numpy()
        table = applied.step.transform(selected)
        table = table.toarray() if hasattr(table, "toarray") else table
    return np.asarray(table)


def _numbers(column: np.ndarray, label: str) -> np.ndarray:
    try:
        return column.astype(np.float64)
    except (TypeError, ValueError):
        raise DtypeError(
            f"column {label!r} holds {shown(column[:1].tolist())}, expected numbers"
        ) from None


# -- what stands where ----------------------------------------------------------------------------


def _kind(step: Any) -> str:
    """Return the class name of an object of scikit-learn; subclasses may compute anything."""
    cls = type(step)
    return cls.__name__ if cls.__module__.partition(".")[0] == "sklearn" else cls.__qualname__ + "?"


def _called(name: str, step: Any) -> str:
    cls = type(step).__name__
    return f"step {name!r} ({cls})" if name else cls


@dataclass(frozen=True, eq=False)
class _Target:
    """What a TransformedTargetRegressor did to the target; predictions are transformed back."""

    transformer: Any


_SEARCHES = ("GridSearchCV", "RandomizedSearchCV", "HalvingGridSearchCV", "HalvingRandomSearchCV")


def _steps(model: Any, name: str = "") -> list[tuple[str, Any]]:
    """Return the steps of a pipeline, nested ones in one line; a search is its best model."""
    if _kind(model) in _SEARCHES:
        return _steps(_fitted(model, name, "best_estimator_"), name)
    if _kind(model) == "TransformedTargetRegressor":
        inner = _steps(_fitted(model, name, "regressor_"), name)
        return [*inner, (name, _Target(model.transformer_))]
    if _kind(model) != "Pipeline":
        return [(name, model)]
    steps = []
    for inner, step in model.steps:
        steps += _steps(step, f"{name}.{inner}" if name else inner)
    return steps


def _raw_columns(steps: Iterable[Any]) -> tuple[int, list[str] | None]:
    """Return number and names of the raw columns: what the first fitted step was given."""
    for step in steps:
        n = getattr(step, "n_features_in_", None)
        if n is not None:
            names = getattr(step, "feature_names_in_", None)
            return int(n), None if names is None else [str(name) for name in names]
    first = next((s for s in steps if not isinstance(s, str)), None)
    raise ModelError(f"{type(first).__name__} is not fitted; call fit before convert")


def _fitted(step: Any, name: str, attribute: str) -> Any:
    try:
        return getattr(step, attribute)
    except AttributeError:
        raise ModelError(
            f"{_called(name, step)} is not fitted (it has no {attribute}); call fit before convert"
        ) from None


def _class_names(classes: Any) -> list[str]:
    return [str(c) for c in np.asarray(classes).tolist()]


# -- steps before the model -----------------------------------------------------------------------


def _standard_scaler(conversion: _Conversion, table: Any, step: Any, name: str) -> Any:
    _fitted(step, name, "n_features_in_")
    mean = step.mean_ if step.with_mean else None
    return conversion.scaled(table, name, minus=mean, over=step.scale_)


def _min_max_scaler(conversion: _Conversion, table: Any, step: Any, name: str) -> Any:
    times = _fitted(step, name, "scale_")
    limits = step.feature_range if step.clip else None
    return conversion.scaled(table, name, times=times, plus=step.min_, limits=limits)


def _max_abs_scaler(conversion: _Conversion, table: Any, step: Any, name: str) -> Any:
    over = _fitted(step, name, "scale_")
    limits = (-1, 1) if getattr(step, "clip", False) else None
    return conversion.scaled(table, name, over=over, limits=limits)


def _robust_scaler(conversion: _Conversion, table: Any, step: Any, name: str) -> Any:
    _fitted(step, name, "n_features_in_")
    return conversion.scaled(table, name, minus=step.center_, over=step.scale_)


def _pca(conversion: _Conversion, table: Any, step: Any, name: str) -> Any:
    w = _fitted(step, name, "components_").T
    if step.whiten:
        spread = np.sqrt(step.explained_variance_)
        w = w / np.maximum(spread, np.finfo(spread.dtype).eps)
    x, _ = conversion.scaled(table, name, minus=step.mean_)
    return conversion.network.dense(x, w, np.zeros(w.shape[1]), name), w.shape[1]


def _truncated_svd(conversion: _Conversion, table: Any, step: Any, name: str) -> Any:
    w = _fitted(step, name, "components_").T
    x, _ = conversion.tensor(table)
    return conversion.network.dense(x, w, np.zeros(w.shape[1]), name), w.shape[1]


def _selection(conversion: _Conversion, table: Any, step: Any, name: str) -> Any:
    _fitted(step, name, "n_features_in_")
    return conversion.select(table, np.flatnonzero(step.get_support()).tolist())


def _function(conversion: _Conversion, table: Any, step: Any, name: str) -> Any:
    if step.func is not None:
        raise ModelError(
            f"{_called(name, step)} calls the function {getattr(step.func, '__name__', '?')!r}, "
            "which cannot be converted; apply it to the data before the pipeline"
        )
    return table


def _imputer(conversion: _Conversion, table: Any, step: Any, name: str) -> Any:
    n = _fitted(step, name, "n_features_in_")
    if len(step.get_feature_names_out()) != n:
        raise ModelError(
            f"{_called(name, step)} adds indicators or drops empty columns, which is not supported"
        )
    raw = _only_raw(table, step, name)
    return _encoded(raw, step, list(raw.columns), list(raw.labels), raw.encoded)


def _ordinal_encoder(conversion: _Conversion, table: Any, step: Any, name: str) -> Any:
    _fitted(step, name, "categories_")
    raw = _only_raw(table, step, name)
    return _encoded(raw, step, list(raw.columns), list(raw.labels), True)


def _one_hot_encoder(conversion: _Conversion, table: Any, step: Any, name: str) -> Any:
    _fitted(step, name, "categories_")
    raw = _only_raw(table, step, name)
    columns, labels = [], []
    for i, values in enumerate(_one_hot_values(step)):
        columns += [raw.columns[i]] * len(values)
        labels += [f"{raw.labels[i]}={value}" for value in values]
    if len(labels) != len(step.get_feature_names_out()):
        raise ModelError(f"{_called(name, step)} has categories that are not understood")
    return _encoded(raw, step, columns, labels, True)


def _one_hot_values(step: Any) -> list[list[str]]:
    """Return the values that have a column, per raw column."""
    rare = getattr(step, "infrequent_categories_", None) or [None] * len(step.categories_)
    dropped = step.drop_idx_ if step.drop_idx_ is not None else [None] * len(step.categories_)
    found = []
    for categories, few, drop in zip(step.categories_, rare, dropped, strict=True):
        few = [] if few is None else few.tolist()
        kept = [c for j, c in enumerate(categories.tolist()) if j != drop and c not in few]
        found.append([*map(str, kept), *["infrequent"][: len(few)]])
    return found


def _only_raw(table: Any, step: Any, name: str) -> Raw:
    if not isinstance(table, Raw):
        raise ModelError(
            f"{_called(name, step)} comes after a step that computes; imputers and encoders must "
            "be the first steps on their columns"
        )
    if table.encoded:
        raise ModelError(f"{_called(name, step)} encodes columns that are encoded already")
    return table


def _encoded(raw: Raw, step: Any, columns: list[int], labels: list[str], encoded: bool) -> Raw:
    """Return the columns that a step makes, which become inputs in place of the raw ones."""
    steps = (*raw.steps, (_Applied(step), raw.positions))
    return Raw(tuple(columns), tuple(labels), steps, tuple(range(len(labels))), encoded)


@dataclass(frozen=True, eq=False)
class _Applied:
    """A fitted transformer that can be part of a key."""

    step: Any


def _column_transformer(conversion: _Conversion, table: Any, step: Any, name: str) -> Any:
    transformers = _fitted(step, name, "transformers_")
    tables = []
    for part, transformer, _ in transformers:
        columns = step._transformer_to_input_indices[part]
        if len(columns) == 0 or (isinstance(transformer, str) and transformer == "drop"):
            continue
        inner = conversion.select(table, [int(c) for c in columns])
        inner = _nested(conversion, inner, transformer, f"{name}.{part}" if name else part)
        weight = (step.transformer_weights or {}).get(part)
        if weight is not None:
            inner = conversion.scaled(inner, f"{name}.{part}_weight", times=float(weight))
        tables.append(inner)
    return conversion.joined(tables)


def _feature_union(conversion: _Conversion, table: Any, step: Any, name: str) -> Any:
    tables = []
    for part, transformer in step.transformer_list:
        if isinstance(transformer, str) and transformer == "drop":
            continue
        inner = _nested(conversion, table, transformer, f"{name}.{part}")
        weight = (step.transformer_weights or {}).get(part)
        if weight is not None:
            inner = conversion.scaled(inner, f"{name}.{part}_weight", times=float(weight))
        tables.append(inner)
    return conversion.joined(tables)


def _nested(conversion: _Conversion, table: Any, step: Any, name: str) -> Any:
    for inner_name, inner in _steps(step, name):
        table = conversion.transform(table, inner, inner_name)
    return table


_TRANSFORMERS: dict[str, Callable[[_Conversion, Any, Any, str], Any]] = {
    "StandardScaler": _standard_scaler,
    "MinMaxScaler": _min_max_scaler,
    "MaxAbsScaler": _max_abs_scaler,
    "RobustScaler": _robust_scaler,
    "PCA": _pca,
    "TruncatedSVD": _truncated_svd,
    "OneHotEncoder": _one_hot_encoder,
    "OrdinalEncoder": _ordinal_encoder,
    "SimpleImputer": _imputer,
    "ColumnTransformer": _column_transformer,
    "FeatureUnion": _feature_union,
    "FunctionTransformer": _function,
    "VarianceThreshold": _selection,
    "SelectKBest": _selection,
    "SelectPercentile": _selection,
    "SelectFromModel": _selection,
    "RFE": _selection,
}


# -- models ---------------------------------------------------------------------------------------

# A model's part of the network: its output, the number of columns, and names for them.
Output = tuple[str, int, list[str] | None]


def _mlp(network: Network, model: Any, x: str, name: str) -> Output:
    weights = list(_fitted(model, name, "coefs_"))
    biases = list(model.intercepts_)
    last = model.out_activation_
    classes = _class_names(model.classes_) if hasattr(model, "classes_") else None
    hidden = _activation(_HIDDEN, model.activation, model, name)
    last = _activation(_LAST, last, model, name)
    if classes is not None and weights[-1].shape[1] == 1:
        weights[-1], biases[-1] = _both_classes(weights[-1], biases[-1])
    for i, (w, b) in enumerate(zip(weights, biases, strict=True), start=1):
        op = last if i == len(weights) else hidden
        x = network.dense(x, w, b, f"Dense_{i}")
        if op:
            x = network.node(op, x, name=f"Activation_{i}")
    return x, weights[-1].shape[1], classes


def _activation(known: dict[str, str | None], kind: str, model: Any, name: str) -> str | None:
    if kind not in known:
        raise ModelError(f"{_called(name, model)} has the activation {kind!r}, not one of "
                         f"{listed(known)}")  # fmt: skip
    return known[kind]


def _both_classes(w: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """Give the negative class its own column: its log-odds are those of the other, negated."""
    return np.concatenate([-w, w], axis=1), np.concatenate([-np.ravel(b), np.ravel(b)])


def _linear(model: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (in, out) and biases of a linear model."""
    coef = _fitted(model, name, "coef_")
    coef = coef.toarray() if hasattr(coef, "toarray") else np.asarray(coef)
    w = np.atleast_2d(coef).T
    return w, np.broadcast_to(np.ravel(model.intercept_), w.shape[1:])


def _regressor(network: Network, model: Any, x: str, name: str) -> Output:
    w, b = _linear(model, name)
    return network.dense(x, w, b, "Dense_1"), w.shape[1], None


def _log_link(network: Network, model: Any, x: str, name: str) -> Output:
    z, n_outputs, names = _regressor(network, model, x, name)
    return network.node("Exp", z, name="Activation_1"), n_outputs, names


def _logistic_regression(network: Network, model: Any, x: str, name: str) -> Output:
    w, b = _linear(model, name)
    classes = _class_names(model.classes_)
    last = "Softmax"
    if len(classes) == 2 and w.shape[1] == 1:
        (w, b), last = _both_classes(w, b), "Sigmoid"
    # Only older versions of scikit-learn fit several classes one against the rest.
    strategy = getattr(model, "multi_class", None)
    versus_rest = strategy == "ovr" or (strategy is not None and model.solver == "liblinear")
    if last == "Softmax" and versus_rest:
        raise ModelError(
            f"{_called(name, model)} was fitted one class against the rest, which is not "
            "supported; fit it with multi_class='multinomial'"
        )
    z = network.dense(x, w, b, "Dense_1")
    return network.node(last, z, name="Activation_1"), w.shape[1], classes


def _decision_function(network: Network, model: Any, x: str, name: str) -> Output:
    w, b = _linear(model, name)
    classes = _class_names(model.classes_)
    classes = classes[1:] if w.shape[1] == 1 and len(classes) == 2 else classes
    return network.dense(x, w, b, "Dense_1"), w.shape[1], classes


def _table(kinds: str, function: Any) -> dict[str, Any]:
    return dict.fromkeys(kinds.split(), function)


_MODELS: dict[str, Callable[..., Output]] = {
    **_table("MLPClassifier MLPRegressor", _mlp),
    **_table("LinearRegression Ridge RidgeCV Lasso LassoCV ElasticNet ElasticNetCV", _regressor),
    **_table("LogisticRegression LogisticRegressionCV", _logistic_regression),
    **_table("LinearSVC RidgeClassifier RidgeClassifierCV Perceptron", _decision_function),
    **_table("LinearSVR SGDRegressor BayesianRidge HuberRegressor", _regressor),
    **_table("PoissonRegressor GammaRegressor", _log_link),
}
