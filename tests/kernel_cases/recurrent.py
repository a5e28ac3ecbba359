"""Cases of the operators that run bodies, and of what stands in them."""

import numpy as np
import onnx.parser

from onnxplain.graph.bodies import Body
from onnxplain.graph.graph import node_of
from onnxplain.graph.load import read_body

from .table import NEWEST, SPAN, Case, X, spread

OWN = "onnxplain"


def body(text, *captured):
    """Return a body written in ONNX's text format; it takes the tensors named from outside."""
    raw = read_body(onnx.parser.parse_graph(text))
    nodes = tuple(node_of(node, {"": NEWEST}) for node in raw.nodes)
    names, outputs = (*raw.inputs, *captured), tuple(spec.name for spec in raw.outputs)
    return Body(nodes, names, outputs, len(raw.inputs), raw.outputs)


STEP = body(
    "step (float[N, 2] h, float[N, 4] x) => (float[N, 2] new, float[N, 2] y) {"
    "a = MatMul(x, W) b = MatMul(h, R) z = Add(a, b) new = Tanh(z) y = Mul(new, h)}",
    *("W", "R"),
)
TWO = body(
    "step (float[N, 2] h, float[N, 2] a, float[N, 2] b) => (float[N, 2] new, float[N, 2] y) {"
    "c = Add(a, h) new = Sigmoid(c) y = Mul(b, c)}"
)
REPEAT = body(
    "step (int64 i, bool go, float[N, 2] h) => (bool again, float[N, 2] new, float[N, 2] y) {"
    "again = Identity(go) part = Gather <axis = 1> (x, i) a = MatMul(part, W) s = Sub(a, h)"
    "new = Tanh(s) y = Softplus(s)}",
    *("x", "W"),
)
SMOOTH = body("then () => (float[N, 4] y) {a = Mul(x, w) y = Tanh(a)}", "x", "w")
SQUARE = body("other () => (float[N, 4] y) {y = Mul(x, x)}", "x", "w")

STATE, SEQUENCE = spread(3, 2, low=-1, high=1), spread(3, 5, 4)
W, R = spread(4, 2, low=-1, high=1), spread(2, 2, low=-1, high=1)
ROWS = {"scan_input_axes": (1,), "scan_output_axes": (1,)}  # axis 0 is the batch


def control():
    once = {"body": STEP, "num_scan_inputs": 1}
    inputs = [STATE, SEQUENCE, W, R]
    for op, domain in (("Scan", ""), ("LSTM", OWN), ("GRU", OWN), ("RNN", OWN)):
        yield Case(op, inputs, {**once, **ROWS}, active=(0, 1), domain=domain, n_outputs=2)
    for active in ((1,), (0,)):
        yield Case("Scan", inputs, {**once, **ROWS}, active=active, n_outputs=2)
    turned = {"scan_input_directions": (1,), "scan_output_directions": (1,)}
    yield Case("Scan", inputs, {**once, **ROWS, **turned}, active=(0, 1), n_outputs=2)
    last = {"scan_input_axes": (-2,), "scan_output_axes": (-1,)}
    yield Case("Scan", inputs, {**once, **last}, active=(0, 1), n_outputs=2)
    first = [STATE, spread(5, 3, 4), W, R]
    yield Case("Scan", first, once, active=(0, 1), n_outputs=2, rows=False)
    yield Case("Scan", first, once, active=(0, 1, 2), n_outputs=2, rows=False)
    parts = [spread(5, 3, 2), spread(3, 2, 5, low=0.5)]
    two = {"body": TWO, "num_scan_inputs": 2, "scan_input_axes": (0, 2)}
    yield Case("Scan", [STATE, *parts], two, active=(0, 1, 2), n_outputs=2, rows=False)
    loop = [np.array(4), None, STATE, SEQUENCE, W]
    yield Case("Loop", loop, {"body": REPEAT}, active=(2, 3), n_outputs=2, rows=False)
    yield Case("Loop", loop, {"body": REPEAT}, active=(3,), n_outputs=2, rows=False)
    loop = [np.array([1]), np.array(True), STATE, SEQUENCE, W]
    yield Case("Loop", loop, {"body": REPEAT}, active=(2,), n_outputs=2, rows=False)
    branches = {"then_branch": SMOOTH, "else_branch": SQUARE}
    for chosen in (True, False):
        yield Case("If", [np.array(chosen), X, spread(4)], branches, active=(1,))
    yield Case("If", [np.array([True]), X, spread(1, 4)], branches, active=(1, 2), rows=False)


def steps():
    gate = spread(3, 4, low=0.05, high=0.95)
    yield Case("Gate", [gate, X], active=(0, 1), domain=OWN)
    yield Case("Gate", [gate, spread(1, 4)], active=(0, 1), domain=OWN, rows=False)
    for active in ((0,), (1,)):
        yield Case("Gate", [gate, X], active=active, domain=OWN)
    yield Case("Sigmoid", [SPAN], domain=OWN)
    yield Case("Sigmoid", [spread(3, 4, low=-100, high=100)], domain=OWN)
    runs = np.array([[True], [False], [True]])
    yield Case("Keep", [runs, X, spread(3, 4, low=1)], active=(1, 2), domain=OWN)


CASES = [*control(), *steps()]
