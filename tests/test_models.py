"""Real public models: forward, gradients and what the methods promise, from end to end."""

import re
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import onnxplain as ox
from onnxplain.cli import main
from onnxplain.errors import ModelError
from onnxplain.rules import AlphaBeta, Epsilon, Gamma, Pass, ZPlus

RUN = [
    "captum-cifar",
    "captum-titanic",
    "deeploy-cct2-op20",
    "deeploy-tinyvit-demo",
    "dianna-mnist-binary",
    "dianna-season",
    "dnnv-convsmall",
    "dronet",
    "dtln-1",
    "emx-kws-fp32",
    "godot-volleyball",
    "mb-gtsrb-fast",
    "mb-self-attention-mnist",
    "mnist-cntk8",
    "superres-onnxzoo10",
    "tract-keras-tf2",
    "unity-sorter-attn",
]
# Outputs in steps: no differences to compare with, and DeepLIFT adds up to what rounding keeps.
QUANTISED = ["conxr-mnist-quant", "emx-kws-qdq"]
# Actions are drawn at random or are indices; these are the tensors they come from.
INNER = {"unity-sorter-attn": ("norm_logits", "norm_logits.3", "onnx::Log_171")}
# Where the path to the outputs has a step, which DeepLIFT cannot explain: the report says so.
# The step (a mask of padded entities) is the same at input and reference here.
STEPS = {"unity-sorter-attn": ["Less"]}
# A fully convolutional model of 224 x 224 pixels: its forward pass is tested at full size, the
# rest on an image of 28 x 28, with the same weights.
SHRUNK = {"superres-onnxzoo10": 8}
RULES = {
    "simple": "simple",
    "epsilon": Epsilon(0.01),
    "alpha_beta": AlphaBeta(2),
    "z_plus": ZPlus(),
    "gamma": Gamma(0.25),
    "by layer": {"Conv2D_Layer": AlphaBeta(1), "Dense": Epsilon(0.1), "BatchNorm": Pass()},
    "first layers": None,  # w_square and flat, the nodes are looked up
}


@lru_cache(maxsize=4)
def load(folder):
    """Return a converter and the stored cases, inputs and onnxruntime's outputs."""
    name = folder.name
    converter = ox.convert(folder / "model.onnx", outputs=INNER.get(name))
    cases = [dict(np.load(path)) for path in sorted(folder.glob("case_*.npz"))]
    inputs = [[case[f"in/{spec.name}"] for spec in converter.graph.inputs] for case in cases]
    return SimpleNamespace(name=name, folder=folder, c=converter, cases=cases, inputs=inputs)


@lru_cache(maxsize=1)
def shrink(folder, factor):
    """Return a fully convolutional model and its cases for images smaller by a factor."""
    model = load(folder)
    proto = onnx.load(folder / "model.onnx")
    _, _, height, width = next(iter(model.inputs))[0].shape
    for value in (*proto.graph.input, *proto.graph.output):
        for d in value.type.tensor_type.shape.dim:
            d.dim_value = d.dim_value if d.dim_value < height else d.dim_value // factor
    for node in proto.graph.node:
        if node.op_type == "Constant":  # shapes of the Reshape nodes
            shape = onnx.numpy_helper.to_array(node.attribute[0].t)
            smaller = np.where(shape < height, shape, shape // factor)
            node.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(smaller))
    cut = np.s_[:, :, height // 2 :, width // 2 :]
    inputs = [[x[cut][..., : height // factor, : width // factor] for x in c] for c in model.inputs]
    return SimpleNamespace(name=model.name, c=ox.convert(proto), inputs=inputs)


@pytest.fixture(params=RUN)
def full_model(request, shared):
    return load(shared / "models" / request.param)


@pytest.fixture(params=RUN)
def model(request, shared):
    folder = shared / "models" / request.param
    if request.param in SHRUNK:
        return shrink(folder, SHRUNK[request.param])
    return load(folder)


def rows(model, n, seed=0):
    """Return `n` rows in float64: the cases in turn with noise, so that no two maxima are equal."""
    rng = np.random.default_rng(seed)
    stacked = [np.concatenate(parts) for parts in zip(*model.inputs, strict=True)]
    picked = [x[(np.arange(n) + seed) % len(x)].astype(float) for x in stacked]
    return [x + rng.normal(0, 0.05 * min(1, np.ptp(x)), x.shape) for x in picked]


def scale(x):
    return np.abs(x).max(initial=0) or 1.0


def close(a, b, rtol):
    return all(
        np.abs(u - v).max(initial=0) <= rtol * scale(v)
        for one, other in zip(a, b, strict=True)
        for u, v in zip(one, other, strict=True)
        if v is not None
    )


# -- forward --------------------------------------------------------------------------------------


def test_every_model_is_in_a_table(shared):
    folders = [path.name for path in (shared / "models").iterdir()]
    assert sorted([*RUN, *QUANTISED]) == sorted(folders)


def test_outputs_agree_with_onnxruntime(full_model):
    model = full_model
    if model.name in INNER:
        pytest.skip("its outputs are drawn at random; inner tensors are compared below")
    for case, inputs in zip(model.cases, model.inputs, strict=True):
        for name, ours in zip(model.c.graph.outputs, model.c(inputs), strict=True):
            stored = case[f"ort/{name}"]
            np.testing.assert_allclose(ours, stored, rtol=0, atol=1e-4 * scale(stored))


@pytest.fixture(params=QUANTISED)
def quantised_model(request, shared):
    return load(shared / "models" / request.param)


def test_outputs_of_quantised_models_agree_with_onnxruntime(quantised_model):
    test_outputs_agree_with_onnxruntime(quantised_model)


def test_quantised_models_are_explained_up_to_what_rounding_keeps(quantised_model):
    model = quantised_model
    for method in ("gradient", "lrp", "deeplift"):
        table = model.c.coverage(method)
        assert (table["rule"] != "").all()
        assert set(table.op[~table.exact]) <= {"QuantizeLinear"}
    x = rows(model, 2)
    found = ox.DeepLift(model.c, x, dtype="double")
    ledger, missing = found.ledger(), found.decomp_goal[0] - found.decomp_sum[0]
    assert ledger.gap.max() < 1e-9
    np.testing.assert_allclose(ledger.rounding.sum(), missing.sum(), rtol=0, atol=1e-9)
    assert abs(missing).max() < 0.1 * scale(found.decomp_goal[0])
    assert ox.LRP(model.c, x, rule_name="epsilon", dtype="double").ledger().gap.max() < 1e-9


def test_rows_of_quantised_models_do_not_depend_on_their_batch(quantised_model):
    test_rows_do_not_depend_on_their_batch(quantised_model, "deeplift")


def test_explanations_of_a_model_and_its_quantised_version_agree(shared):
    pair = [load(shared / "models" / name) for name in ("emx-kws-fp32", "emx-kws-qdq")]
    found = ox.compare_models([m.c for m in pair], rows(pair[0], 2), ox.Gradient, dtype="double")
    assert found.table.pearson.median() > 0.9


@pytest.mark.parametrize("name", INNER)
def test_inner_tensors_agree_with_onnxruntime(name, shared):
    import onnxruntime

    model = load(shared / "models" / name)
    proto = onnx.load(model.folder / "model.onnx")
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in INNER[name])
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), settings)
    names = [spec.name for spec in model.c.graph.inputs]
    for inputs in model.inputs:
        theirs = session.run(list(INNER[name]), dict(zip(names, inputs, strict=True)))
        for ours, stored in zip(model.c(inputs), theirs, strict=True):
            np.testing.assert_allclose(ours, stored, rtol=0, atol=1e-4 * scale(stored))


def test_model_with_whole_number_outputs_asks_for_inner_tensors(shared):
    with pytest.raises(ModelError, match="outputs="):
        ox.convert(shared / "models" / "unity-sorter-attn" / "model.onnx")


# -- coverage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*RUN, *QUANTISED])
def test_inspect_shows_complete_coverage_or_names_the_nodes(name, shared):
    path = str(shared / "models" / name / "model.onnx")
    more = ["--outputs", ",".join(INNER[name])] if name in INNER else []
    shown = CliRunner().invoke(main, ["inspect", path, *more])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    remarks = [line for line in lines if line.startswith("inexact (")]
    assert not any(
        line.startswith(("no rule (grad", "no rule (lrp", "no rule (deep")) for line in lines
    )
    for method in ("grad", "lrp", "deeplift"):
        (row,) = (line.split() for line in lines if line.split()[:1] == [method])
        nodes, exact, inexact, lacking = map(int, row[1:])
        assert (exact + inexact, lacking) == (nodes, 0)
        own = [r for r in remarks if method in re.split(r"\W+", r.partition(")")[0])]
        assert bool(own) == (inexact > 0)
        assert (name in STEPS or name in QUANTISED) or inexact == 0


# -- gradient -------------------------------------------------------------------------------------


def test_gradient_agrees_with_central_differences(model):
    """Along random directions, in float64; directions that cross a kink are drawn again."""
    x = rows(model, 1)
    gradient = ox.Gradient(model.c, x, dtype="double")
    rng = np.random.default_rng(1)
    checked = 0
    for _ in range(12):
        v = [rng.normal(0, min(1, np.ptp(a) or 1), a.shape) for a in x]
        slope = differences(model, x, v, gradient)
        if slope is None:
            continue
        along = [
            sum(
                np.tensordot(d[0], g[0], d[0].ndim)
                for d, g in zip(v, parts, strict=True)
                if g is not None
            )
            for parts in gradient.result
        ]
        for ours, theirs in zip(along, slope, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale(theirs))
        checked += 1
        if checked == 3:
            return
    pytest.fail(f"only {checked} directions without a kink")


def differences(model, x, v, method, step=1e-6):
    """Return differences of the explained nodes; None if two steps disagree: a kink was crossed."""

    def central(h):
        ahead, behind = (
            scores(model, [a + t * d for a, d in zip(x, v, strict=True)], method) for t in (h, -h)
        )
        return [(f - b) / (2 * h) for f, b in zip(ahead, behind, strict=True)]

    slopes = []
    for wide, narrow in zip(central(step), central(step / 2), strict=True):
        if np.abs(wide - narrow).max() > 3e-6 * scale(narrow):
            return None
        slopes.append((4 * narrow - wide) / 3)
    return slopes


def scores(model, x, method):
    """Return the explained nodes of one row, before the last activation, in float64."""
    engine = method._engine
    return [s[0] for s in method._scores(engine.forward(x), slice(0, 1))]


# -- additivity -----------------------------------------------------------------------------------


def test_coverage_promises_exact_deeplift(full_model):
    table = full_model.c.coverage("deeplift")
    assert list(table[~table.exact].op) == STEPS.get(full_model.name, [])


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_deeplift_adds_up(model, rule):
    reference = rows(model, 1, seed=1)
    found = ox.DeepLift(model.c, rows(model, 2), x_ref=reference, rule_name=rule, dtype="double")
    for total, goal in zip(found.decomp_sum, found.decomp_goal, strict=True):
        np.testing.assert_allclose(total, goal, rtol=0, atol=1e-9)
    assert max(map(scale, found.decomp_goal)) > 1e-6  # there was something to be explained


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_deepshap_adds_up(model, rule):
    found = ox.DeepSHAP(
        model.c, rows(model, 1), data_ref=rows(model, 4, seed=1), rule_name=rule, dtype="double"
    )
    for total, goal in zip(found.decomp_sum, found.decomp_goal, strict=True):
        np.testing.assert_allclose(total, goal, rtol=0, atol=1e-9)


def test_deeplift_adds_up_without_winners(model):
    found = ox.DeepLift(
        model.c,
        rows(model, 1),
        x_ref=rows(model, 1, seed=1),
        winner_takes_all=False,
        dtype="double",
    )
    for total, goal in zip(found.decomp_sum, found.decomp_goal, strict=True):
        np.testing.assert_allclose(total, goal, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_relevance_ledger_closes_at_every_node(model, rule):
    chosen = RULES[rule] or first_layers(model)
    if isinstance(chosen, dict):
        chosen = {k: v for k, v in chosen.items() if not isinstance(v, Pass) or has_norm(model)}
    found = ox.LRP(model.c, rows(model, 1), rule_name=chosen, dtype="double")
    table = found.ledger()
    assert len(table) > 1
    assert table.gap.max() < 1e-9, table.sort_values("gap").tail(3)


def has_norm(model):
    return any(node.op == "BatchNormalization" for node in model.c.graph.nodes)


def first_layers(model):
    """Return w_square for the first layer of weights and flat for the second."""
    names = [
        n.name
        for n in model.c.graph.nodes
        if n.op in ("Conv", "Gemm", "MatMul") and sum(n.kernel.active) == 1
    ]
    return dict(zip(names, ("w_square", "flat"), strict=False))


# -- independence of rows -------------------------------------------------------------------------


def sizes(model):
    return [int(np.prod(dim)) for dim in model.c.output_dim]


METHODS = {
    "gradient": (ox.Gradient, {}),
    "lrp": (ox.LRP, {"rule_name": "epsilon"}),
    "deeplift": (ox.DeepLift, {}),
    "reveal_cancel": (ox.DeepLift, {"rule_name": "reveal_cancel"}),
    "intgrad": (ox.IntegratedGradient, {"n": 3}),
}


@pytest.mark.parametrize("method", METHODS)
def test_rows_do_not_depend_on_their_batch(model, method):
    cls, own = METHODS[method]
    x = rows(model, 3)
    settings = own | {"dtype": "double", "output_idx": [0, 1] if min(sizes(model)) > 1 else None}
    together = cls(model.c, x, **settings)
    in_chunks = cls(model.c, x, batch_size=2, **settings)
    assert close(in_chunks.result, together.result, 1e-10)
    last = cls(model.c, [a[-1:] for a in x], **settings)
    assert close(
        last.result, [[a if a is None else a[-1:] for a in r] for r in together.result], 1e-10
    )
