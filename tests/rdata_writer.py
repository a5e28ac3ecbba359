"""Write R's serialisation format by hand, for tests: objects are lists of numbers and bytes."""

import struct

import numpy as np

NA = np.array(0x7FF00000000007A2, np.uint64).view(np.float64)[()]

# An object is a list of ("int", n), ("doubles", array), ("text", bytes) or ("raw", bytes);
# encoders turn it into XDR, little-endian or ASCII.


def ints(*values):
    return [("int", v) for v in values]


NULL = ints(254)
GLOBAL = ints(253)
UNBOUND = ints(252)
MISSING = ints(251)
ATTRIBUTES, TAG, OBJECT = 0x200, 0x400, 0x100


def _with(kind, body, attributes):
    if not attributes:
        return ints(kind) + body
    flags = kind | ATTRIBUTES | (OBJECT if "class" in attributes else 0)
    return ints(flags) + body + pairlist(attributes)


def char(text, flags=9 | 8 << 12):
    if text is None:
        return ints(9, -1)
    data = text if isinstance(text, bytes) else text.encode()
    return [*ints(flags, len(data)), ("text", data)]


def symbol(name):
    return ints(1) + char(name)


def doubles(values, attributes=None):
    array = np.asarray(values, float).ravel(order="F")
    return _with(14, [("int", len(array)), ("doubles", array)], attributes)


def integers(values, attributes=None, kind=13):
    return _with(kind, ints(len(values), *values), attributes)


def logicals(values):
    return integers(values, kind=10)


def strings(values, attributes=None):
    body = ints(len(values)) + [item for v in values for item in char(v)]
    return _with(16, body, attributes)


def vector(values, attributes=None, kind=19):
    return _with(kind, ints(len(values)) + [item for v in values for item in v], attributes)


def named_list(values, classes=None):
    attributes = {"names": strings(list(values))}
    if classes:
        attributes["class"] = strings(classes)
    return vector(list(values.values()), attributes)


def pairlist(values, kind=2):
    """A pairlist from a dict, or from (tag or None, object) pairs."""
    cells = []
    for tag, value in values.items() if isinstance(values, dict) else values:
        cells += ints(kind | (TAG if tag else 0)) + (symbol(tag) if tag else []) + value
        kind = 2
    return cells + NULL


def call(function, *arguments):
    """A call; arguments are objects or (tag, object)."""
    pairs = [a if isinstance(a, tuple) and len(a) == 2 else (None, a) for a in arguments]
    return pairlist([(None, symbol(function)), *pairs], kind=6)


def closure(body, defaults=None, variables=None, attributes=None):
    environment = environment_of(variables) if variables else GLOBAL
    formals = pairlist({"x": MISSING} | (defaults or {}))
    found = pairlist(attributes or {"type": strings(["function"])})
    return ints(3 | ATTRIBUTES | TAG) + found + environment + formals + body


def environment_of(variables):
    return ints(4, 0) + GLOBAL + pairlist(variables) + NULL + NULL


def bytecode(expression):
    """Byte code whose constants are an expression and a number."""
    constants = [("int", 14), *expression, ("int", 14), *doubles([1.0])]
    return ints(21, 1) + integers([11, 0]) + ints(2) + constants


def altrep(name, state, attributes=NULL):
    info = pairlist([(None, symbol(name)), (None, symbol("base")), (None, integers([13]))])
    return ints(238) + info + state + attributes


# -- encodings ------------------------------------------------------------------------------------

_ESCAPES = {10: b"\\n", 9: b"\\t", 92: b"\\\\", 34: b'\\"', 39: b"\\'", 63: b"\\?"}


def _binary(items, order):
    parts = []
    for kind, value in items:
        if kind == "int":
            parts.append(struct.pack(f"{order}i", value))
        elif kind == "doubles":
            parts.append(np.asarray(value).astype(f"{order}f8").tobytes())
        else:
            parts.append(value)
    return b"".join(parts)


def _double_word(value):
    if np.isnan(value):
        return "NA" if np.array(value).view(np.uint64) & 0xFFFFFFFF == 1954 else "NaN"
    return {np.inf: "Inf", -np.inf: "-Inf"}.get(value, f"{value:.17g}")


def _escaped(data):
    return b"".join(
        _ESCAPES.get(c) or (bytes([c]) if 32 < c < 127 else b"\\%03o" % c) for c in data
    )


def _ascii(items):
    lines = []
    for kind, value in items:
        if kind == "int":
            lines.append(b"NA" if value == -(2**31) else b"%d" % value)
        elif kind == "doubles":
            lines += [_double_word(v).encode() for v in value]
        elif kind == "raw":
            lines += [b"%02x" % v for v in value]
        else:
            lines.append(_escaped(value))
    return b"".join(line + b"\n" for line in lines)


def encoded(items, encoding="xdr", version=3):
    header = ints(version, 0x040202, 0x030500 if version == 3 else 0x020300)
    if version == 3:
        header += [("int", 5), ("text", b"UTF-8")]
    items = header + list(items)
    if encoding == "ascii":
        return b"A\n" + _ascii(items)
    return {"xdr": b"X\n", "native": b"B\n"}[encoding] + _binary(
        items, ">" if encoding == "xdr" else "<"
    )


def rds(items, encoding="xdr", version=3):
    return encoded(items, encoding, version)


def workspace(objects, encoding="xdr", version=3):
    mark = {"xdr": b"X", "ascii": b"A", "native": b"B"}[encoding]
    return b"RD%s%d\n" % (mark, version) + encoded(pairlist(objects), encoding, version)


# -- networks -------------------------------------------------------------------------------------


def matrix(values, rownames=None):
    attributes = {"dim": integers(np.shape(values))}
    if rownames:
        attributes["dimnames"] = vector([strings(rownames), NULL])
    return doubles(values, attributes)


def nn(layers=None, *, repetitions=None, errors=None, act="logistic", linear_output=True,
       names=("a", "b")):  # fmt: skip
    """The object that neuralnet makes, with what a prediction needs."""
    if isinstance(act, str):
        body = call("tanh", symbol("x"))
        act = closure(body, attributes={"type": strings([act])})
    repetitions = repetitions or [layers]
    parts = {
        "model.list": named_list({"response": strings(["y"]), "variables": strings(list(names))}),
        "act.fct": act,
        "linear.output": logicals([int(linear_output)]),
        "weights": vector([vector([matrix(w) for w in layers]) for layers in repetitions]),
    }
    if errors:
        steps = np.arange(len(errors)) + 1.0
        parts["result.matrix"] = matrix(np.array([errors, steps]), ["error", "steps"])
    return named_list(parts, classes=["nn"])


def network(layers=None, encoding="xdr", version=3, **options):
    return rds(nn(layers, **options), encoding, version)
