"""Properties that hold for every graph, tried on graphs drawn at random.

The graphs are the same in every run. ONNXPLAIN_EXAMPLES=20 looks at 20 times as many, new ones.
"""

import os
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import onnxplain as ox
from onnxplain.graph.graph import build
from onnxplain.graph.load import read_model
from onnxplain.walk import Ledger, backward, forward, relevance_step
from random_graphs import BLOCKS, as_float32, draw_rows, graphs

LRP_RULES = ("simple", "epsilon", "alpha_beta", "gamma", "z_plus", "w_square", "flat")
SEEDS = st.integers(0, 2**16)


def examples(count: int) -> settings:
    """Return settings for `count` graphs, the same in every run."""
    more = int(os.environ.get("ONNXPLAIN_EXAMPLES", "1"))
    return settings(
        max_examples=count * more,
        derandomize=more == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def assert_close(found, expected, tolerance, floor=1.0):
    """Compare relative to the largest number of the expectation."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    scale = max(floor, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def assert_same_results(a, b, tolerance):
    """Compare all arrays of two explanations."""
    for row_a, row_b in zip(a.result, b.result, strict=True):
        for x, y in zip(row_a, row_b, strict=True):
            assert (x is None) == (y is None)
            if x is not None:
                assert_close(x, y, tolerance)


def in_double(model):
    return ox.convert(model, dtype="double")


def all_nodes(converter):
    """Return `output_idx` for every node of every output."""
    return [list(range(int(np.prod(dim)))) for dim in converter.output_dim]


# -- forward --------------------------------------------------------------------------------------


def run_graph(model, data, optimise):
    graph = build(read_model(model), optimise=optimise).cast(data[0].dtype)
    with np.errstate(all="ignore"):
        values = forward(graph, dict(zip([i.name for i in graph.inputs], data, strict=True)))
    return [values[name] for name in graph.outputs]


def run_onnxruntime(model, data):
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {i.name: x for i, x in zip(session.get_inputs(), data, strict=True)})


@pytest.mark.parametrize("block", BLOCKS)
@examples(4)
@given(draw=st.data())
def test_forward_equals_onnxruntime(block, draw):
    model = as_float32(draw.draw(graphs(including=block)))
    data = [x.astype("f4") for x in draw_rows(model, 3, draw.draw(SEEDS))]
    expected = run_onnxruntime(model, data)
    for optimise in (False, True):
        for found, want in zip(run_graph(model, data, optimise), expected, strict=True):
            assert_close(found, want, 2e-5)


@pytest.mark.parametrize("block", BLOCKS)
@examples(4)
@given(draw=st.data())
def test_joining_changes_no_output(block, draw):
    model = draw.draw(graphs(including=block))
    data = draw_rows(model, 3, draw.draw(SEEDS))
    plain, joined = (run_graph(model, data, optimise) for optimise in (False, True))
    for a, b in zip(joined, plain, strict=True):
        assert_close(a, b, 1e-12)


# -- gradient -------------------------------------------------------------------------------------


def one_sided(converter, data, direction, h):
    """Return forward and backward difference quotients of all outputs along a direction."""
    at = [
        np.concatenate(
            [
                y.reshape(len(y), -1)
                for y in converter([x + s * h * d for x, d in zip(data, direction, strict=True)])
            ],
            axis=1,
        )
        for s in (-1, 0, 1)
    ]
    return (at[2] - at[1]) / h, (at[1] - at[0]) / h


def along(method, direction):
    """Return the derivative of all explained nodes along a direction, from their gradients."""
    found = []
    for row in method.result:
        terms = [
            (g * d[..., None]).reshape(len(d), -1, g.shape[-1]).sum(axis=1)
            for g, d in zip(row, direction, strict=True)
            if g is not None
        ]
        found.append(sum(terms))
    return np.concatenate(found, axis=1)


def test_gradient_equals_central_differences():
    seen = Counter()

    @examples(150)
    @given(model=graphs(), seed=SEEDS)
    def check(model, seed):
        converter = in_double(model)
        data, direction = (draw_rows(model, 3, s) for s in (seed, seed + 1))
        h = 2e-5
        up, down = one_sided(converter, data, direction, h)
        up2, down2 = one_sided(converter, data, direction, h / 2)
        scale = max(1.0, np.abs(up).max())
        # Between smooth sides the one-sided quotients differ by h f'': half of it at h / 2. A kink
        # between or at the points breaks that, and there is no derivative to compare with.
        smooth = np.abs((up - down) - 2 * (up2 - down2)) < 1e-7 * scale
        seen.update(smooth.ravel().tolist())
        gradient = ox.Gradient(
            converter,
            data,
            dtype="double",
            ignore_last_act=False,
            output_idx=all_nodes(converter),
        )
        central = (4 * (up2 + down2) / 2 - (up + down) / 2) / 3
        error = np.abs(along(gradient, direction) - central)
        assert error[smooth].max(initial=0) < 1e-6 * scale

    check()
    assert seen[True] > 0.95 * seen.total()


# -- DeepLIFT -------------------------------------------------------------------------------------

DEEPLIFT = list(product(("rescale", "reveal_cancel"), (True, False)))


@pytest.mark.parametrize("block", BLOCKS)
@examples(3)
@given(draw=st.data())
def test_deeplift_is_complete_at_every_cut(block, draw):
    model = draw.draw(graphs(including=block))
    whole, seed = draw.draw(st.booleans()), draw.draw(SEEDS)
    data, reference = draw_rows(model, 3, seed, whole), draw_rows(model, 1, seed + 1, whole)
    converter = in_double(model)
    for rule, winner in DEEPLIFT:
        found = ox.DeepLift(
            converter,
            data,
            x_ref=reference,
            rule_name=rule,
            winner_takes_all=winner,
            dtype="double",
            ignore_last_act=draw.draw(st.booleans()),
            output_idx=all_nodes(converter),
        )
        scale = magnitude_of_multipliers(found)
        for total, goal in zip(found.decomp_sum, found.decomp_goal, strict=True):
            np.testing.assert_allclose(total, goal, rtol=0, atol=1e-9 * scale)
        assert (found.ledger().gap < 1e-9 * scale).all()


def magnitude_of_multipliers(method):
    """Return the largest sum of absolute contributions: what rounding is relative to."""
    return max(
        1.0,
        *(
            np.abs(r).sum(axis=tuple(range(1, r.ndim - 1))).max()
            for row in method.result
            for r in row
            if r is not None
        ),
    )


@examples(30)
@given(model=graphs(), seed=SEEDS, setting=st.sampled_from(DEEPLIFT), references=st.integers(1, 5))
def test_deepshap_is_the_mean_of_deeplift(model, seed, setting, references):
    rule, winner = setting
    data, refs = draw_rows(model, 3, seed), draw_rows(model, references, seed + 1)
    converter = in_double(model)
    options = {"rule_name": rule, "winner_takes_all": winner, "dtype": "double"}
    options["output_idx"] = all_nodes(converter)
    found = ox.DeepSHAP(converter, data, data_ref=refs, **options)
    each = [
        ox.DeepLift(converter, data, x_ref=[r[k : k + 1] for r in refs], **options)
        for k in range(references)
    ]
    for j, row in enumerate(found.result):
        for i, result in enumerate(row):
            if result is not None:
                assert_close(result, np.mean([e.result[j][i] for e in each], axis=0), 1e-9)


# -- LRP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS)
@examples(3)
@given(draw=st.data())
def test_lrp_books_all_relevance(block, draw):
    model = draw.draw(graphs(including=block))
    data = draw_rows(model, 3, draw.draw(SEEDS), draw.draw(st.booleans()))
    converter = in_double(model)
    for rule in LRP_RULES:
        lrp = ox.LRP(
            converter,
            data,
            rule_name=rule,
            dtype="double",
            output_idx=all_nodes(converter),
            winner_takes_all=draw.draw(st.booleans()),
        )
        graph, engine = lrp._engine.graph, lrp._engine
        values, ledger, flow = engine.forward(lrp.data), Ledger(graph.rows_first), {}
        step = relevance_step(graph, values, lrp._settings, ledger)

        def watched(node, r, step=step, flow=flow):
            out = step(node, r)
            # Next to a zero denominator large relevances cancel: rounding is relative to those.
            flow[node.name] = sum(np.abs(s).sum() for s in (*r, *out) if s is not None)
            return out

        rows = slice(0, len(data[0]))
        start = lrp._start(lrp._parts(values, rows))
        backward(graph, lrp._seeds(values, slice(0, lrp._n_nodes), rows, start), watched)
        for entry in ledger.entries:
            gap = np.abs(entry.gap).max()
            assert gap <= 1e-9 * max(1.0, flow[entry.node.name]), entry.node.label


# -- rows, chunks, types, outputs -----------------------------------------------------------------

METHODS = {
    "Gradient": lambda c, x, refs, **o: ox.Gradient(c, x, **o),
    "SmoothGrad": lambda c, x, refs, **o: ox.SmoothGrad(c, x, n=3, seed=1, **o),
    "IntegratedGradient": lambda c, x, refs, **o: ox.IntegratedGradient(c, x, n=4, **o),
    "ExpectedGradient": lambda c, x, refs, **o: ox.ExpectedGradient(
        c, x, data_ref=refs, n=4, seed=1, **o
    ),
    "LRP": lambda c, x, refs, **o: ox.LRP(c, x, rule_name="epsilon", rule_param=0.1, **o),
    "DeepLift": lambda c, x, refs, **o: ox.DeepLift(c, x, **o),
    "DeepLift reveal_cancel": lambda c, x, refs, **o: ox.DeepLift(
        c, x, rule_name="reveal_cancel", winner_takes_all=False, **o
    ),
    "DeepSHAP": lambda c, x, refs, **o: ox.DeepSHAP(c, x, data_ref=refs, **o),
}


def explain(name, converter, model, data, **options):
    """Run a method on all nodes; its references do not depend on the data."""
    options = {"dtype": "double", "output_idx": all_nodes(converter)} | options
    return METHODS[name](converter, data, draw_rows(model, 3, 7), **options)


@pytest.mark.parametrize("name", METHODS)
@examples(25)
@given(model=graphs(), seed=SEEDS)
def test_a_row_does_not_depend_on_its_batch(name, model, seed):
    converter, data = in_double(model), draw_rows(model, 4, seed)
    together = explain(name, converter, model, data)
    backwards = explain(name, converter, model, [x[::-1] for x in data])
    chunked = explain(name, converter, model, data, batch_size=3)
    alone = explain(name, converter, model, [x[1:2] for x in data])
    for s, row in enumerate(together.result):
        for i, result in enumerate(row):
            if result is None:
                continue
            assert_close(backwards.result[s][i][::-1], result, 1e-9)
            assert_close(chunked.result[s][i], result, 1e-9)
            assert_close(alone.result[s][i], result[1:2], 1e-9)


@pytest.mark.parametrize("name", METHODS)
@examples(20)
@given(model=graphs(), seed=SEEDS)
def test_float32_is_close_to_float64(name, model, seed):
    data = [x.astype("f4") for x in draw_rows(model, 3, seed)]
    converter = ox.convert(model)
    single = explain(name, converter, model, data, dtype="float")
    double = explain(name, converter, model, data)
    assert all(r is None or r.dtype == np.float32 for row in single.result for r in row)
    assert_same_results(single, double, 1e-3)


@pytest.mark.parametrize("name", METHODS)
@examples(20)
@given(model=graphs(), seed=SEEDS)
def test_all_outputs_together_equal_one_at_a_time(name, model, seed):
    converter, data = in_double(model), draw_rows(model, 2, seed)
    together = explain(name, converter, model, data)
    for j, dim in enumerate(converter.output_dim):
        size = int(np.prod(dim))
        for node in {0, size - 1}:
            index = [None] * len(converter.output_dim)
            index[j] = [node]
            single = explain(name, converter, model, data, output_idx=index)
            for one, all_nodes in zip(single.result[0], together.result[j], strict=True):
                assert (one is None) == (all_nodes is None)
                if one is not None:
                    assert_close(one[..., 0], all_nodes[..., node], 1e-9)


@pytest.mark.parametrize("name", METHODS)
@examples(10)
@given(model=graphs(), seed=SEEDS)
def test_data_stays_as_it_was_and_a_seed_repeats(name, model, seed):
    converter, data = in_double(model), draw_rows(model, 3, seed)
    before = [x.copy() for x in data]
    weights = {k: np.array(w) for k, w in converter.graph.weights.items()}
    first = explain(name, converter, model, data)
    second = explain(name, converter, model, data)
    for x, kept in zip(data, before, strict=True):
        np.testing.assert_array_equal(x, kept)
    for key, kept in weights.items():
        np.testing.assert_array_equal(converter.graph.weights[key], kept)
    for a, b in zip(first.result, second.result, strict=True):
        for x, y in zip(a, b, strict=True):
            if x is not None:
                np.testing.assert_array_equal(x, y)


# -- the graphs themselves ------------------------------------------------------------------------


def test_graphs_reuse_tensors_and_have_dead_ends():
    seen = Counter()

    @examples(100)
    @given(model=graphs())
    def look(model):
        uses = Counter(name for node in model.graph.node for name in node.input)
        outputs = {o.name for o in model.graph.output}
        made = [name for node in model.graph.node for name in node.output]
        seen["reused"] += any(uses[name] > 1 for name in made)
        seen["dead"] += any(not uses[name] and name not in outputs for name in made)
        seen["several outputs"] += len(outputs) > 1
        seen["several inputs"] += len(model.graph.input) > 1

    look()
    assert min(seen[key] for key in ("reused", "dead", "several outputs", "several inputs")) > 20


def test_blocks_cover_the_differentiable_operators():
    made = set()

    @examples(4)
    @given(models=st.tuples(*(graphs(including=block, most=2) for block in BLOCKS)))
    def look(models):
        made.update(node.op_type for model in models for node in model.graph.node)

    look()
    wanted = {op for op in ox.registered_ops() if _differentiable(op)}
    wanted = {op for op in wanted if "." not in op}  # operators of other domains have own models
    assert wanted - made <= {
        *("CumProd", "RMSNormalization", "RotaryEmbedding", "Swish", "TensorScatter"),  # newer
        *("GroupNormalization", "Scatter", "Upsample", "Erfc"),  # older, or none of ONNX's
        *("Compress", "MeanVarianceNormalization"),  # shapes that ONNX does not infer
        *("GatherElements", "GatherND", "ScatterElements", "ScatterND", "AffineGrid", "DeformConv"),
        *("RoiAlign", "MaxUnpool", "CastLike", "ReverseSequence"),  # indices that name the rows
        *("If", "Loop", "Scan"),  # bodies
        *("QuantizeLinear", "DequantizeLinear"),  # rounding is no part of what adds up
    }


def _differentiable(op):
    from onnxplain.kernels.base import _REGISTRY

    domain, _, name = op.rpartition(".")
    return any(cls.family != "constant" for _, cls in _REGISTRY[(domain, name)])
