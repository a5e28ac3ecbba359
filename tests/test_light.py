"""The nine light architectures of the onnx package, with random weights, against onnxruntime."""

import gc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxplain as ox

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = [
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
]


def randomised(name):
    """Return a light model with seeded weights in place of its constants, its input and shape.

    The files carry each weight as ConstantOfShape; as they are, all outputs would be equal.
    """
    proto = onnx.load(LIGHT / f"light_{name}.onnx")
    rng = np.random.default_rng(0)
    shapes = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    kinds = {
        name: (node.op_type, i) for node in proto.graph.node for i, name in enumerate(node.input)
    }
    kept = []
    for node in proto.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        weight = draw(rng, kinds[node.output[0]], tuple(shapes[node.input[0]]))
        proto.graph.initializer.append(numpy_helper.from_array(weight, node.output[0]))
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    used = {i for node in kept for i in node.input}
    weights = [t for t in proto.graph.initializer if t.name in used]
    names = {t.name for t in weights}
    inputs = [i for i in proto.graph.input if i.name in used - names]
    graph = helper.make_graph(kept, name, inputs, proto.graph.output, weights)
    (data,) = inputs
    shape = tuple(d.dim_value for d in data.type.tensor_type.shape.dim)
    model = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=8)
    return model, data.name, shape


def draw(rng, use, shape):
    """Return weights that keep the scale of what passes: He-normal, statistics around 1."""
    op, position = use
    if len(shape) > 1:
        fan = np.prod(shape[1:])
        return (rng.standard_normal(shape, np.float32) * np.sqrt(2 / fan)).astype(np.float32)
    if op == "BatchNormalization" and position in (1, 4):  # scale and variance
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.normal(0, 0.1, shape).astype(np.float32)


def image(shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run_onnxruntime(serialised, feeds):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(serialised, options).run(None, feeds)[0]


@pytest.mark.parametrize("name", NAMES)
def test_light_architecture_agrees_with_onnxruntime(name):
    proto, data, shape = randomised(name)
    x = image(shape)
    serialised = proto.SerializeToString()
    del proto  # the largest has 575 MB of weights
    gc.collect()
    theirs = run_onnxruntime(serialised, {data: x})
    converter = ox.convert(serialised)
    del serialised
    gc.collect()
    (ours,) = converter(x)
    assert np.ptp(theirs) > 1e-4  # the outputs are no constant
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


@pytest.fixture(scope="module", params=["squeezenet", "shufflenet"])
def medium(request):
    proto, _, shape = randomised(request.param)
    return ox.convert(proto), image(shape)


def test_deeplift_of_a_medium_network_adds_up(medium):
    converter, x = medium
    found = ox.DeepLift(converter, x, x_ref=image(x.shape, 2), output_idx=[0, 7], dtype="double")
    (total,), (goal,) = found.decomp_sum, found.decomp_goal
    np.testing.assert_allclose(total, goal, rtol=0, atol=1e-12 * np.abs(goal).max())


def test_relevance_ledger_of_a_medium_network_closes(medium):
    """Relative to the explained outputs: random residual networks return large numbers."""
    converter, x = medium
    found = ox.LRP(converter, x, rule_name="epsilon", output_idx=[0, 7], dtype="double")
    assert found.ledger().gap.max() < 1e-12 * np.abs(found.decomp_goal[0]).max()


def test_gradient_of_a_medium_network_agrees_with_differences(medium):
    converter, x = medium
    found = ox.Gradient(converter, x, output_idx=[0, 7], dtype="double")
    engine = found._engine
    v = np.random.default_rng(3).normal(size=x.shape)
    row = slice(0, 1)
    ahead, behind = (found._scores(engine.forward([x + t * v]), row)[0][0] for t in (1e-8, -1e-8))
    along = np.tensordot(v[0], found.result[0][0][0], 3)
    np.testing.assert_allclose(along, (ahead - behind) / 2e-8, rtol=1e-5)
