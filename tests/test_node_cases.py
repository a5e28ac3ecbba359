"""ONNX's own test cases, one operator each, run through our kernels with ONNX's tolerances."""

import warnings
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.backend.test.loader import load_model_tests

from onnxplain import kernels
from onnxplain.errors import UnsupportedOpError
from onnxplain.graph.expand import body_of
from onnxplain.graph.graph import Node, build
from onnxplain.graph.load import OLDEST_OPSET, attributes_of, read_model
from onnxplain.walk import forward
from tiers import OTHERS, TIER_OF, TIERS, is_expanded, tier_of

GAPS_FILE = Path(__file__).with_name("node_gaps.txt")


def known_gaps():
    """Read lines `case  # reason`."""
    lines = (line.partition("#") for line in GAPS_FILE.read_text().splitlines())
    return {name.strip(): reason.strip() for name, _, reason in lines if name.strip()}


@cache
def all_cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX makes numbers that overflow, on purpose
        return {case.name: case for case in load_model_tests(kind="node")}


def registered(model):
    """Tell whether every node of a model of our opsets has a kernel, or a definition by others."""
    opsets = {o.domain: o.version for o in model.opset_import}
    old = min((opsets[d] for d in ("", "ai.onnx") if d in opsets), default=OLDEST_OPSET)
    return old >= OLDEST_OPSET and all(
        kernels.versions(n.op_type, n.domain) or defined(n, opsets.get(n.domain, 1))
        for n in model.graph.node
    )


def defined(node, opset):
    """Tell whether ONNX defines an operator by others that have kernels."""
    attributes = attributes_of(node, node.name)
    names = tuple(node.input), tuple(node.output)
    return body_of(Node("", node.op_type, *names, attributes, opset, node.domain), {}) is not None


def with_weights(model, values, n_data):
    """Return the model with all inputs but the first `n_data` as weights."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    names = [i.name for i in graph.input]
    for name, value in list(zip(names, values, strict=False))[n_data:]:
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    del graph.input[n_data:]
    return changed


def bound(model, values):
    """Build the graph with as many data inputs as the kernels have rules for."""
    for n_data in (len(model.graph.input), 1):
        try:
            return build(read_model(with_weights(model, values, n_data)), optimise=False)
        except UnsupportedOpError:
            continue
    return build(read_model(with_weights(model, values, 0)), optimise=False)


def outputs_of(model, values):
    names = [i.name for i in model.graph.input]
    found = forward(bound(model, values), dict(zip(names, values, strict=False)))
    return [found[o.name] for o in model.graph.output]


def array(value):
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def quantises(model):
    return any(
        n.op_type in ("QuantizeLinear", "QLinearConv", "QLinearMatMul") for n in model.graph.node
    )


def stored(y, dtype):
    """Return numbers that carry data, which are held as floats, as the file would keep them."""
    kept = y.astype(dtype)
    np.testing.assert_array_equal(kept.astype(y.dtype), y)
    return kept


def check(case):
    for data_set in case.data_sets:
        values, expected = (list(map(array, part)) for part in data_set)
        before = [np.asarray(v).tobytes() for v in values]
        for y, e in zip(outputs_of(case.model, values), expected, strict=True):
            y = stored(y, e.dtype) if quantises(case.model) else y
            assert (y.dtype, y.shape) == (e.dtype, e.shape)
            if y.dtype.kind not in "biufcOU":  # NumPy cannot compare bfloat16 and the like
                y, e = y.astype(np.float64), e.astype(np.float64)
            np.testing.assert_allclose(y, e, rtol=case.rtol, atol=case.atol)
        assert [np.asarray(v).tobytes() for v in values] == before  # inputs are left alone


NAMES = sorted(name for name, case in all_cases().items() if registered(case.model))
GAPS = known_gaps()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # cases divide by 0 and overflow on purpose
@pytest.mark.parametrize("name", NAMES)
def test_node_case(name):
    if name not in GAPS:
        check(all_cases()[name])
        return
    try:
        check(all_cases()[name])
    except Exception:
        pytest.xfail(GAPS[name])
    pytest.fail(f"{name} passes: remove it from {GAPS_FILE.name}")


def test_every_gap_is_a_case_and_has_a_reason():
    assert sorted(GAPS.keys() - set(NAMES)) == []
    assert all(GAPS.values())


def counts(names):
    """Return, for each tier, the number of cases of operators and of their definitions."""
    table = {tier: [0, 0] for tier in (*TIERS, OTHERS)}
    for name in names:
        table[tier_of(all_cases()[name].model)][is_expanded(name)] += 1
    return table


def by_tier(passed):
    """Return lines that tell how many cases passed in each tier."""
    table = counts(passed)
    table["all"] = [sum(column) for column in zip(*table.values(), strict=True)]
    for tier, (plain, expanded) in table.items():
        yield f"  {tier + ':':42}{plain:5} and {expanded:4} of definitions by other operators"


def test_at_least_1000_cases_of_operators_pass():
    """Each is run above; here they are counted, without those of definitions by others."""
    table = counts(name for name in NAMES if name not in GAPS)
    assert sum(plain for plain, _ in table.values()) >= 1000
    assert sum(expanded for _, expanded in table.values()) >= 300
    assert all(plain for plain, _ in table.values())


def test_no_operator_stands_in_two_tiers():
    assert sum(len(ops.split()) for ops in TIERS.values()) == len(TIER_OF)
