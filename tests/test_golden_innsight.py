"""Numbers of the R package innsight: its documents' own, and derived ones for small nets.

"Printed" numbers stand in its vignettes, articles and paper (Koenen & Wright 2024, JSS 111(8));
they were computed in float32. The rest follows from its documented rules, in float64.
"""

import json

import numpy as np
import pandas as pd
import pytest

import onnxplain as ox
from networks import dense, layered, random_dense

# Half a unit of the last of the 12 decimals that the file keeps, with room for one more rounding.
DECIMALS = 1e-12


def explain(method, converter, x, **options):
    """Return the plain result, of a method given as a class."""
    return method(converter, np.asarray(x, float), **options).get_result()


def assert_close(got, want, digits=DECIMALS):
    """Compare to 1e-9 of the largest number, or to the digits that are there."""
    want = np.asarray(want, float)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9 * abs(want).max() + digits)


# ---------------------------------------------------------------- the whole file


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "golden" / "innsight.json").read_text())


SUITES = [
    "vignette_1_3_1",
    "iris_2_1_3_seed1111",
    "iris_4_10_3_seed45",
    "T_3_4_2_linear",
    "T_3_4_2_softmax",
    "T_3_4_2_sigmoid",
]
SUITE_METHODS = {
    "grad": (ox.Gradient, {}),
    "intgrad_n5": (ox.IntegratedGradient, {"n": 5}),
    "lrp_simple": (ox.LRP, {}),
    "lrp_epsilon_default": (ox.LRP, {"rule_name": "epsilon"}),
    "lrp_epsilon_0.01": (ox.LRP, {"rule_name": "epsilon", "rule_param": 0.01}),
    "lrp_alpha_beta_default": (ox.LRP, {"rule_name": "alpha_beta"}),
    "lrp_alpha_beta_1": (ox.LRP, {"rule_name": "alpha_beta", "rule_param": 1}),
    "lrp_alpha_beta_2": (ox.LRP, {"rule_name": "alpha_beta", "rule_param": 2}),
    "deeplift_rescale": (ox.DeepLift, {}),
    "deeplift_reveal_cancel": (ox.DeepLift, {"rule_name": "reveal_cancel"}),
}
WITH_REFERENCE = (ox.IntegratedGradient, ox.DeepLift)
SUITE_KEYS = [
    (net, f"{method}_{last}")
    for net in SUITES
    for method in SUITE_METHODS
    for last in ("ila", "noila")
    # Evaluated literally, innsight divides by its stabiliser here and gets up to 7e11; its own
    # specification says not to use these, and the file leaves them out.
    if (net, method, last) != ("T_3_4_2_softmax", "deeplift_reveal_cancel", "noila")
]
# The second instance has no negative part before the second output's sigmoid. innsight divides
# what rounding leaves of 0 by its stabiliser 1e-15: that noise shifts shares between inputs, only
# their sum is meant.
NOISE = {("T_3_4_2_sigmoid", "deeplift_reveal_cancel_noila"): (1, slice(None), 1)}

WINDOWS = ["C1_conv1d_maxpool", "C1_conv1d_avgpool"]
WINDOW_METHODS = {"grad": (ox.Gradient, {}), "cw": (ox.ConnectionWeights, {})}
for name, options in {
    "simple_None": {},
    "epsilon_0.25": {"rule_name": "epsilon", "rule_param": 0.25},
    "alpha_beta_1": {"rule_name": "alpha_beta", "rule_param": 1},
    "alpha_beta_2": {"rule_name": "alpha_beta", "rule_param": 2},
}.items():
    for wta in (True, False):
        WINDOW_METHODS[f"lrp_{name}_wta{wta}"] = (ox.LRP, {**options, "winner_takes_all": wta})
for ref in ("refA", "refB"):
    for rule in ("rescale", "reveal_cancel"):
        for wta in (True, False):
            WINDOW_METHODS[f"deeplift_{ref}_{rule}_wta{wta}"] = (
                ox.DeepLift,
                {"x_ref": ref, "rule_name": rule, "winner_takes_all": wta},
            )


def suite_converter(net, shape, matmul=False):
    return ox.convert(layered(net["layers"], shape[1:], matmul=matmul))


def run_suite(net, key, like, matmul=False):
    """Run one entry of a suite in float64."""
    suite = net["suite"]
    x = np.array(suite["x"])
    name, last = key.rsplit("_", 1)
    method, options = SUITE_METHODS[name]
    if method in WITH_REFERENCE:
        options = {**options, "x_ref": np.array(suite["x_ref"])}
    converter = suite_converter(net, x.shape, matmul)
    return method(converter, x, dtype="double", ignore_last_act=last == "ila", like=like, **options)


@pytest.mark.parametrize("matmul", [False, True], ids=["Gemm", "MatMul+Add"])
@pytest.mark.parametrize("net, key", SUITE_KEYS)
def test_suite_like_innsight(golden, net, key, matmul):
    method = run_suite(golden[net], key, "innsight", matmul)
    got, want = method.get_result(), np.array(golden[net]["suite"][key])
    if noise := NOISE.get((net, key)):
        assert got[noise].sum() == pytest.approx(want[noise].sum(), abs=1e-9)
        assert got[noise].sum() == pytest.approx(method.decomp_goal[0][1, 1], abs=1e-9)
        got[noise] = want[noise]
    assert_close(got, want)


PROBABILITIES = [*SUITES[1:3], *SUITES[4:]]  # nets that end in a sigmoid or softmax
# Where onnxplain's conventions differ from innsight's, and nowhere else, its own defaults give
# other numbers: the epsilon of 0.001, the start of LRP at probabilities minus a half, and DeepLIFT
# of a softmax.
OWN_DEFAULTS = [
    (net, key)
    for net, key in SUITE_KEYS
    if not key.startswith("lrp_epsilon_default")
    and (net, key) not in NOISE
    and not (net in PROBABILITIES and key.startswith("lrp") and key.endswith("_noila"))
    and (net, key) != ("T_3_4_2_softmax", "deeplift_rescale_noila")
]


@pytest.mark.parametrize("net, key", OWN_DEFAULTS)
def test_suite_by_default(golden, net, key):
    assert_close(run_suite(golden[net], key, like=None).get_result(), golden[net]["suite"][key])


@pytest.mark.parametrize("net", SUITES)
def test_default_epsilon_is_the_documented_one(golden, net):
    want = golden[net]["suite"]["lrp_epsilon_0.01_ila"]
    assert_close(run_suite(golden[net], "lrp_epsilon_default_ila", like=None).get_result(), want)


@pytest.mark.parametrize("net", PROBABILITIES)
@pytest.mark.parametrize(
    "key", ["lrp_simple", "lrp_epsilon_0.01", *(f"lrp_alpha_beta_{a}" for a in ("default", 1, 2))]
)
def test_default_start_of_lrp_at_probabilities_is_the_output_itself(golden, net, key):
    method = run_suite(golden[net], f"{key}_noila", like=None)
    output = method.preds[0][:, None]
    # Relevance is linear in its start value, and innsight starts from the output - 0.5.
    want = np.array(golden[net]["suite"][f"{key}_noila"]) * output
    assert_close(method.get_result() * (output - 0.5), want)


@pytest.mark.parametrize("net", SUITES)
def test_suite_predictions(golden, net):
    suite = golden[net]["suite"]
    x = np.array(suite["x"])
    converter = suite_converter(golden[net], x.shape)
    full = ox.Gradient(converter, x, dtype="double", ignore_last_act=False)
    assert_close(full.preds[0], suite["output"])
    before = ox.Gradient(converter, x, dtype="double")
    assert_close(before.decomp_goal[0], suite["preactivation_out"])


@pytest.mark.parametrize("like", ["innsight", None])
@pytest.mark.parametrize("net", SUITES)
def test_suite_connection_weights(golden, net, like):
    suite = golden[net]["suite"]
    converter = suite_converter(golden[net], np.shape(suite["x"]))
    weights = ox.ConnectionWeights(converter, dtype="double", like=like)
    assert_close(weights.get_result(), suite["cw"])


def run_windows(net, key, like):
    method, options = WINDOW_METHODS[key]
    x = np.array(net["x"])
    options = {k: np.array(net[v]) if k == "x_ref" else v for k, v in options.items()}
    converter = suite_converter(net, x.shape)
    data = [] if method is ox.ConnectionWeights else [x]
    return method(converter, *data, dtype="double", like=like, **options)


@pytest.mark.parametrize("key", WINDOW_METHODS)
@pytest.mark.parametrize("net", WINDOWS)
def test_convolution_net_like_innsight(golden, net, key):
    assert_close(run_windows(golden[net], key, "innsight").get_result(), golden[net][key])


# Max-pools differ by default where the winner takes all: DeepLIFT credits the maxima of input and
# reference and is exact, connection weights take the window's mean.
WINDOW_DEFAULTS = [
    (net, key)
    for net in WINDOWS
    for key in WINDOW_METHODS
    if not (net.endswith("maxpool") and (key == "cw" or ("ref" in key and "True" in key)))
]


@pytest.mark.parametrize("net, key", WINDOW_DEFAULTS)
def test_convolution_net_by_default(golden, net, key):
    assert_close(run_windows(golden[net], key, None).get_result(), golden[net][key])


@pytest.mark.parametrize("key", [k for k in WINDOW_METHODS if k.startswith("deeplift")])
@pytest.mark.parametrize("net", WINDOWS)
def test_convolution_net_by_default_adds_up_for_every_reference(golden, net, key):
    method = run_windows(golden[net], key, None)
    want = golden[net][f"delta_y_{key.split('_')[1]}"]
    assert_close(method.decomp_goal[0], want)
    assert_close(method.decomp_sum[0], want)


@pytest.mark.parametrize("net", WINDOWS)
def test_convolution_net_output(golden, net):
    assert_close(run_windows(golden[net], "grad", None).preds[0], golden[net]["output"])


def test_every_number_of_the_file_is_tested(golden):
    described = {"origin", "layers", "inputs", "dtype"}
    fed = {"x", "x_ref", "refA", "refB"}
    suite_keys = {"preactivation_out", "output", "cw"}
    window_keys = {"output", "delta_y_refA", "delta_y_refB", *WINDOW_METHODS}
    printed = {
        "vignette_1_3_1": VIGNETTE,
        "iris_2_1_3_seed1111": PETALS,
        "iris_4_10_3_seed45": IRIS,
        "jss_appendix_lrp_bias": APPENDIX,
    }
    seen = set()
    for name, net in golden.items():
        if name == "_note":
            continue
        seen.add(name)
        rest = set(net) - described - fed
        if "suite" in net:
            keys = {key for n, key in SUITE_KEYS if n == name}
            assert set(net["suite"]) - fed == keys | suite_keys
        if name in WINDOWS:
            assert rest == window_keys
            continue
        assert rest - {"suite"} == ({"printed"} if name in printed else set()) | (
            {"innvestigate_prints"} if name == "jss_appendix_lrp_bias" else set()
        )
        if name in printed:  # the copies below, which need no file
            assert net["printed"] == printed[name]
    assert seen == {*SUITES, *WINDOWS, "jss_appendix_lrp_bias"}
    assert golden["jss_appendix_lrp_bias"]["innvestigate_prints"] == INNVESTIGATE


# ---------------------------------------------------------------- the vignette's net

VIGNETTE_LAYERS = [
    dense([[1], [0.8], [2]], [0, -0.4, -1.2], "relu"),
    dense([[1, -1, 1]], [0], "tanh"),
]
VIGNETTE = {
    "gradient x=0.45 ignore_last_act=F": 0.8220012,
    "gradient x input x=0.49 ignore_last_act=F": 0.3889068,
    "lrp simple x=0.49,0.6 ignore_last_act=F": [0.4542146, 0.1102428],
    "lrp minus f": [-1.877546e-06, -0.3674572],
    "deeplift rescale x=.55 x_ref=.1 ignore_last_act=F": 0.3702772,
    "intgrad n=50 x=.55 x_ref=.1 ignore_last_act=F": 0.3668411,
    "cw global": 2.2,
    "cw local x=.1,.4,.6": [0.22, 0.8800001, 1.3200001],
    "smoothgrad x=.6 noise_level=.2 n=50 (random)": 0.8371726,
    "smoothgrad x input x=.49 noise_level=.1 n=50 (random)": 0.3008178,
}
# Seven digits are printed: one unit of the last, because float32 sums may round either way.
SEVEN_DIGITS = {"rtol": 0, "atol": 1.01e-7}


@pytest.fixture(scope="module")
def vignette():
    model = layered(VIGNETTE_LAYERS, (1,), dtype="float32")
    return ox.convert(model, input_names=["x"], output_names=["y"])


@pytest.mark.parametrize(
    "key, method, x, options",
    [
        ("gradient x=0.45 ignore_last_act=F", ox.Gradient, [0.45], {}),
        ("gradient x input x=0.49 ignore_last_act=F", ox.Gradient, [0.49], {"times_input": True}),
        ("lrp simple x=0.49,0.6 ignore_last_act=F", ox.LRP, [0.49, 0.6], {}),
        (
            "deeplift rescale x=.55 x_ref=.1 ignore_last_act=F",
            ox.DeepLift,
            [0.55],
            {"x_ref": np.array([[0.1]])},
        ),
        (
            "intgrad n=50 x=.55 x_ref=.1 ignore_last_act=F",
            ox.IntegratedGradient,
            [0.55],
            {"x_ref": np.array([[0.1]]), "n": 50},
        ),
    ],
)
def test_vignette_printed(vignette, key, method, x, options):
    got = method(vignette, np.c_[x], ignore_last_act=False, **options).get_result()
    np.testing.assert_allclose(got[:, 0, 0], VIGNETTE[key], **SEVEN_DIGITS)


def test_vignette_printed_reveal_cancel_is_rescale(vignette):
    options = {"x_ref": np.array([[0.1]]), "ignore_last_act": False}
    got = ox.DeepLift(vignette, [[0.55]], rule_name="reveal_cancel", **options)
    assert got.get_result().item() == pytest.approx(0.3702772, abs=1e-7)
    assert got.preds[0].item() == pytest.approx(0.469945199, abs=1e-7)
    assert got.preds[0].item() - got.decomp_goal[0].item() == pytest.approx(0.099667995, abs=1e-7)


def test_vignette_printed_difference_of_lrp_and_output(vignette):
    lrp = ox.LRP(vignette, [[0.49], [0.6]], ignore_last_act=False)
    gap = lrp.get_result()[:, 0, 0] - lrp.preds[0][:, 0]
    # Printed from float32: one unit of 0.45 is 3e-8.
    np.testing.assert_allclose(gap, VIGNETTE["lrp minus f"], rtol=0, atol=1e-7)


def test_vignette_printed_connection_weights(vignette):
    weights = ox.ConnectionWeights(vignette).get_result()
    np.testing.assert_allclose(weights, [[[VIGNETTE["cw global"]]]], rtol=2e-7)
    x = np.array([[0.1], [0.4], [0.6]])
    local = ox.ConnectionWeights(vignette, x, times_input=True).get_result()
    np.testing.assert_allclose(local[:, 0, 0], VIGNETTE["cw local x=.1,.4,.6"], rtol=2e-7)


@pytest.mark.parametrize(
    "key, x, options, mean, sd",
    [
        ("smoothgrad x=.6 noise_level=.2 n=50 (random)", 0.6, {"noise_level": 0.2}, 0.873, 0.064),
        (
            "smoothgrad x input x=.49 noise_level=.1 n=50 (random)",
            0.49,
            {"noise_level": 0.1, "times_input": True},
            0.348,
            0.039,
        ),
    ],
)
def test_vignette_smoothgrad_has_the_stated_mean_and_deviation(vignette, key, x, options, mean, sd):
    def draw(n, seed):
        method = ox.SmoothGrad(vignette, [[x]], n=n, seed=seed, ignore_last_act=False, **options)
        return method.get_result().item()

    assert abs(VIGNETTE[key] - mean) < 2 * sd
    assert draw(50_000, seed=1) == pytest.approx(mean, abs=4 * sd / np.sqrt(1000) + 5e-4)
    fifty = [draw(50, seed) for seed in range(300)]
    assert np.mean(fifty) == pytest.approx(mean, abs=4 * sd / np.sqrt(300) + 5e-4)
    # The deviation of 300 draws is known to 1 / sqrt(600) = 4 %.
    assert np.std(fifty) == pytest.approx(sd, rel=0.16)


VIGNETTE_X = [0.1, 0.45, 0.49, 0.55, 0.6, 0.8]
VIGNETTE_LRP = {  # options: values of the pre-activation, values of the output
    "simple": (
        {},
        [0.1, 0.45, 0.49, 0.11, 0.12, 1.76],
        [0.0996679946, 0.421899005, 0.454216433, 0.101360729, 0.110238464, 1.36450759],
    ),
    "epsilon 0.001": (
        {"rule_name": "epsilon", "rule_param": 0.001},
        [0.0980296049, 0.448006647, 0.488006106, 0.11949921, 0.124687806, 1.75583783],
        [0.0977041414, 0.42003013, 0.452368148, 0.110113882, 0.114544935, 1.36128071],
    ),
    "epsilon": (
        {"rule_name": "epsilon"},
        [0.0826446281, 0.430647448, 0.470596, 0.184559753, 0.160412414, 1.71879495],
        [0.0823702435, 0.403754955, 0.436229462, 0.170064647, 0.147363485, 1.33256179],
    ),
    "alpha_beta": (
        {"rule_name": "alpha_beta"},
        [0.025, 0.1125, 0.1225, 0.255, 0.26, 0.48],
        [0.0249169987, 0.105474751, 0.113554108, 0.234972599, 0.238850006, 0.372138434],
    ),
    "alpha 1": (
        {"rule_name": "alpha_beta", "rule_param": 1},
        [0.1, 0.45, 0.49, 0.51, 0.52, 0.96],
        [0.0996679946, 0.421899005, 0.454216433, 0.469945199, 0.477700012, 0.744276867],
    ),
    "alpha 2": (
        {"rule_name": "alpha_beta", "rule_param": 2},
        [0.4, 1.8, 1.96, 1.02, 1.04, 1.92],
        [0.398671979, 1.68759602, 1.81686573, 0.939890398, 0.955400024, 1.48855373],
    ),
}


@pytest.mark.parametrize("ignore_last_act", [True, False])
@pytest.mark.parametrize("rule", VIGNETTE_LRP)
def test_vignette_lrp_table(rule, ignore_last_act):
    options, before, after = VIGNETTE_LRP[rule]
    converter = ox.convert(layered(VIGNETTE_LAYERS, (1,)))
    options = {**options, "ignore_last_act": ignore_last_act, "dtype": "double"}
    got = explain(ox.LRP, converter, np.c_[VIGNETTE_X], **options)
    np.testing.assert_allclose(got[:, 0, 0], before if ignore_last_act else after, rtol=6e-9)


# ---------------------------------------------------------------- iris


@pytest.fixture(scope="module")
def iris(shared):
    """The table of R; two of its rows differ from scikit-learn's."""
    return pd.read_csv(shared / "golden" / "iris.csv").drop(columns="Species")


PETALS_LAYERS = [
    dense([[1.10050250394, 2.37104633989]], [-10.6269860923], "logistic"),
    dense(
        [[-465.983709691], [-2.65807013909], [23.423170255]],
        [3.06623695571, -0.168824538744, -4.93528175375],
        "logistic",
    ),
]
PETALS = {
    "gradient [row][out][in]": [
        [[-0.09324544, -0.2008985], [-0.0005318918, -0.001145968], [0.004687082, 0.01009838]],
        [[-97.20391083, -209.4270325], [-0.5544717908, -1.194616318], [4.886058807, 10.52707481]],
    ],
    "deeplift rescale x_ref=colMeans [row][in][out]": [
        [[6.1404, 0.0350, -0.3087], [5.6068, 0.0320, -0.2818]],
        [[-47.5426, -0.2712, 2.3898], [-59.0470, -0.3368, 2.9681]],
    ],
}


@pytest.fixture(scope="module")
def petals(iris):
    table = iris[["Petal.Length", "Petal.Width"]].to_numpy()
    return table[[0, 70]], table.mean(axis=0, keepdims=True)


@pytest.mark.parametrize("dtype", ["float", "double"])
def test_petals_printed_gradient(petals, dtype):
    converter = ox.convert(layered(PETALS_LAYERS, (2,)))
    got = explain(ox.Gradient, converter, petals[0], dtype=dtype)
    want = np.moveaxis(PETALS["gradient [row][out][in]"], 1, 2)
    # Printed from float32: up to ten of its units of the numbers.
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float", "double"])
def test_petals_printed_deeplift(petals, dtype):
    converter = ox.convert(layered(PETALS_LAYERS, (2,)))
    got = explain(ox.DeepLift, converter, petals[0], x_ref=petals[1], dtype=dtype)
    want = PETALS["deeplift rescale x_ref=colMeans [row][in][out]"]
    # Four decimals; the largest, of 59.05, are printed from float32 with an error of 7e-5.
    np.testing.assert_allclose(got, want, rtol=1.2e-6, atol=5.1e-5)


def test_petals_exact_deeplift_and_lrp(petals):
    converter = ox.convert(layered(PETALS_LAYERS, (2,)))
    got = explain(ox.DeepLift, converter, petals[0], x_ref=petals[1], dtype="double")
    want = [
        [
            [6.140452477, 0.03502644627, -0.3086564204],
            [5.606811488, 0.03198244463, -0.2818323846],
        ],
        [
            [-47.54266356, -0.2711934596, 2.389782904],
            [-59.04706687, -0.3368170217, 2.968064058],
        ],
    ]
    np.testing.assert_allclose(got, want, rtol=2e-10)
    lrp = explain(ox.LRP, converter, petals[0][:1], dtype="double")
    want = [
        [0.01516097659, 8.648143339e-05, -7.620827262e-04],
        [0.004666358961, 2.661790349e-05, -2.345595311e-04],
    ]
    np.testing.assert_allclose(lrp[0], want, rtol=2e-10)


IRIS = {
    "gradient x input, setosa": [
        [-0.8710907, -0.4592198, 3.246672, 0.6098831],
        [-1.1206678, -0.0285231, 2.863380, 0.6617002],
    ],
    "gradient x input, virginica": [
        [1.034490, 0.4134942, -2.887100, -0.6511033],
        [1.406196, 0.0178409, -2.672977, -0.7532284],
    ],
    "data.frame row data_1/Sepal.Length/setosa": {
        "value": -0.8710907,
        "pred": 1,
        "decomp_sum": 2.526245,
        "decomp_goal": 38.69567,
    },
}
SPECIES = ["setosa", "versicolor", "virginica"]
UNIT = 2**-24  # the distance of float32 numbers below 1


@pytest.fixture(scope="module")
def iris_net(golden, iris):
    model = layered(golden["iris_4_10_3_seed45"]["layers"], (4,))
    return ox.convert(model, input_names=list(iris.columns), output_names=SPECIES)


@pytest.fixture(scope="module")
def scaled_iris(iris):
    """Each column centred and divided by its population variance."""
    table = iris.to_numpy()
    return (table - table.mean(axis=0)) / table.var(axis=0)


@pytest.fixture(scope="module")
def iris_weights(golden):
    return [np.array(layer["weight"]) for layer in golden["iris_4_10_3_seed45"]["layers"]]


def slope_errors(weights, x):
    """Bound what a unit of float32 in a sigmoid s does to gradient x input: (rows, features, 3).

    The printed gradients use the slope s (1 - s), so that a nearly saturated unit keeps few digits
    of it. onnxplain takes s(x) s(-x), which keeps all.
    """
    first, last = weights
    return UNIT * abs(x)[..., None] * (abs(first).T @ abs(last).T)


@pytest.mark.parametrize("dtype", ["float", "double"])
@pytest.mark.parametrize("species", ["setosa", "virginica"])
def test_iris_printed_gradient_times_input(iris_net, iris_weights, scaled_iris, species, dtype):
    x, k = scaled_iris[[0, 9]], SPECIES.index(species)
    got = explain(ox.Gradient, iris_net, x, times_input=True, dtype=dtype)[..., k]
    gap = abs(got - IRIS[f"gradient x input, {species}"])
    assert (gap <= slope_errors(iris_weights, x)[..., k]).all()


@pytest.mark.oracle
@pytest.mark.parametrize("species", ["setosa", "virginica"])
def test_iris_printed_gradient_times_input_has_the_errors_of_torch(golden, scaled_iris, species):
    torch = pytest.importorskip("torch")
    x = torch.tensor(scaled_iris[[0, 9]], dtype=torch.float32, requires_grad=True)
    y = x
    for layer in golden["iris_4_10_3_seed45"]["layers"]:
        weight, bias = (torch.tensor(layer[k], dtype=torch.float32) for k in ("weight", "bias"))
        score = y @ weight.T + bias
        y = torch.sigmoid(score)
    score[:, SPECIES.index(species)].sum().backward()
    got = (x.grad * x).detach().numpy()
    np.testing.assert_allclose(got, IRIS[f"gradient x input, {species}"], rtol=3e-7, atol=6e-7)


@pytest.mark.parametrize("dtype", ["float", "double"])
def test_iris_printed_data_frame(iris_net, iris_weights, scaled_iris, dtype):
    method = ox.run_grad(iris_net, scaled_iris[:5], times_input=True, dtype=dtype)
    frame = method.get_result("data.frame")
    assert list(frame["data"][:5]) == [f"data_{i}" for i in range(1, 6)]
    first = frame[:5]
    assert set(first["feature"]) == {"Sepal.Length"}
    assert set(first["output_node"]) == {"setosa"}
    want = [
        (-0.8710907, 1, 2.526245, 38.69567),
        (-0.8874521, 1, 2.200905, 37.48206),
        (-3.2150893, 1, 2.216229, 37.25521),
        (-2.1678915, 1, 2.855533, 36.83816),
        (-1.2359949, 1, 2.779133, 38.44946),
    ]
    assert want[0] == tuple(IRIS["data.frame row data_1/Sepal.Length/setosa"].values())
    got = first[["value", "pred", "decomp_sum", "decomp_goal"]].to_numpy()
    errors = slope_errors(iris_weights, scaled_iris[:5])[..., 0]
    # Seven digits of prediction and goal are printed, the other two inherit errors of slopes.
    goal = np.full(5, 1.01e-5)
    allowed = np.stack([errors[:, 0], 1e-7 + 0 * goal, errors.sum(axis=1), goal], axis=1)
    assert (abs(got - want) <= allowed).all()


@pytest.mark.parametrize(
    "method, options, want",
    [
        (ox.LRP, {}, [-0.4299276953, 4.372631124, 15.45318077, 20.82766646]),
        (
            ox.LRP,
            {"rule_name": "epsilon", "rule_param": 0.001},
            [-0.4286824164, 4.372721942, 15.44888029, 20.8247407],
        ),
        (
            ox.LRP,
            {"rule_name": "alpha_beta"},
            [8.02970434, 6.420775924, 9.130581684, 5.071138906],
        ),
        (
            ox.LRP,
            {"rule_name": "alpha_beta", "rule_param": 2},
            [-43.74003085, -19.5812858, 68.70094465, 69.65698893],
        ),
        (ox.DeepLift, {}, [0.7252577637, 10.04082035, 27.94101098, 43.92289221]),
        (
            ox.DeepLift,
            {"rule_name": "reveal_cancel"},
            [-0.5504225808, 10.37754257, 28.57869691, 44.2241644],
        ),
    ],
)
def test_iris_exact_setosa(iris_net, scaled_iris, method, options, want):
    got = explain(method, iris_net, scaled_iris[:1], dtype="double", **options)
    np.testing.assert_allclose(got[0, :, 0], want, rtol=2e-9)


# ---------------------------------------------------------------- iris, DeepSHAP

DEEPSHAP_LAYERS = [
    dense(
        [[0.598498393587, 0.839290832565, -1.46637142348, -1.83689864127]],
        [-1.49282167243],
        "logistic",
    ),
    dense(
        [[139.054260941], [-3.53237507799], [-1438.76353035]],
        [-55.341150718, 0.0109530784464, 5.30652158054],
        "logistic",
    ),
]
DEEPSHAP = {
    "rescale": [
        [
            [-0.05842646226, 0.02603530124, 0.03221521175],
            [0.04954231934, -0.02296458224, -0.01658878404],
            [0.4437581906, -0.2018253087, -0.2225645331],
            [0.231792619, -0.1057268522, -0.1222638118],
        ],
        [
            [0.006859619399, -0.00032847016, 0.1122452495],
            [-0.03210688318, 0.0147088302, 0.0295827072],
            [-0.1934068232, 0.08108621242, -0.3232669152],
            [-0.1146792463, 0.05016641319, -0.1477571523],
        ],
    ],
    "reveal_cancel": [
        [
            [-0.0192109162, 0.0082105557, 0.0110195147],
            [0.0476330177, -0.022100695, -0.0160115161],
            [0.4190683017, -0.1906011109, -0.2091081983],
            [0.2191762634, -0.0999901918, -0.1151017174],
        ]
    ],
}
DEEPSHAP_ERRORS = [(-1.24e-9, -6.37e-9, 2.14e-8), (-9.62e-9, -3.89e-8, 1.63e-8)]
EXPGRAD_ERRORS = [(-0.093, -0.0040, -0.0013), (0.013, 0.0011, -0.0030)]


@pytest.fixture(scope="module")
def deepshap_net():
    return ox.convert(layered(DEEPSHAP_LAYERS, (4,)))


def deepshap(net, iris, rule, dtype, like=None):
    table = iris.to_numpy()
    options = {"data_ref": table, "limit_ref": 150, "rule_name": rule, "dtype": dtype}
    return ox.DeepSHAP(net, table[[0, 59]], ignore_last_act=False, like=like, **options)


@pytest.mark.parametrize("like", [None, "innsight"])
@pytest.mark.parametrize("rule", DEEPSHAP)
def test_deepshap_contributions(deepshap_net, iris, rule, like):
    got = deepshap(deepshap_net, iris, rule, "double", like).get_result()
    want = DEEPSHAP[rule]
    np.testing.assert_allclose(got[: len(want)], want, rtol=0, atol=2e-10)


@pytest.mark.parametrize("dtype, bound", [("float", 1.2e-7), ("double", 1e-14)])
@pytest.mark.parametrize("rule", DEEPSHAP)
def test_deepshap_adds_up_as_printed(deepshap_net, iris, rule, dtype, bound):
    method = deepshap(deepshap_net, iris, rule, dtype)
    assert abs(np.array(DEEPSHAP_ERRORS)).max() < 1.2e-7  # a unit of float32 at 1, as printed
    assert abs(method.decomp_goal[0] - method.decomp_sum[0]).max() < bound
    mean = deepshap_net(iris.to_numpy())[0].mean(axis=0)
    np.testing.assert_allclose(method.decomp_goal[0], method.preds[0] - mean, atol=2e-7)


def test_expected_gradient_misses_the_goal_by_as_much_as_printed(deepshap_net, iris):
    table = iris.to_numpy()

    def error(seed):
        options = {"data_ref": table, "n": 10_000, "ignore_last_act": False, "seed": seed}
        method = ox.ExpectedGradient(deepshap_net, table[[0, 59]], **options)
        return method.decomp_goal[0] - method.decomp_sum[0]

    errors = np.array([error(seed) for seed in range(16)])
    sd = errors.std(axis=0, ddof=1)
    assert (abs(np.array(EXPGRAD_ERRORS)) < 4 * sd).all()
    assert (abs(errors.mean(axis=0)) < 4 * sd / 4).all()


@pytest.mark.parametrize("dtype, bound", [("float", 1.6e-14), ("double", 1e-28)])
def test_reveal_cancel_adds_up_over_all_of_iris_as_printed(iris, dtype, bound):
    # Printed: a mean squared error of 1.6e-14, in float32, for a trained 4-5-3 net.
    layers = random_dense(np.random.default_rng(3), (4, 5, 3), "logistic")
    layers[-1]["activation_name"] = "logistic"
    table = iris.to_numpy()
    options = {"x_ref": table.mean(axis=0, keepdims=True), "rule_name": "reveal_cancel"}
    method = ox.DeepLift(
        ox.convert(layered(layers, (4,))), table, ignore_last_act=False, dtype=dtype, **options
    )
    assert np.mean((method.decomp_goal[0] - method.decomp_sum[0]) ** 2) < bound


# ---------------------------------------------------------------- the paper's appendix

APPENDIX = {"epsilon 0.01": 0.9868421, "alpha_beta 1": 0.7499993, "alpha_beta 2": 1.499999,
            "output": 0.75}  # fmt: skip
INNVESTIGATE = {"epsilon 0.01": 0.9868421, "alpha_beta 1": 1, "alpha_beta 2": 2}


def appendix(rule, param):
    converter = ox.convert(layered([dense([[1]], [-0.25], "linear")], (1,), dtype="float32"))
    method = ox.LRP(converter, [[1.0]], rule_name=rule, rule_param=param)
    assert method.preds[0].item() == APPENDIX["output"]
    return method.get_result().item()


@pytest.mark.parametrize("rule, param", [("epsilon", 0.01), ("alpha_beta", 1), ("alpha_beta", 2)])
def test_appendix_printed(rule, param):
    # Seven digits are printed; 1.4999985 rounds either way.
    assert appendix(rule, param) == pytest.approx(APPENDIX[f"{rule} {param}"], rel=6e-7)


@pytest.mark.parametrize("param", [1, 2])
def test_appendix_negative_bias_stays_out_of_the_positive_part_unlike_innvestigate(param):
    # iNNvestigate divides by the positive part and the whole bias: 0.75 instead of 1.
    got = appendix("alpha_beta", param) / 0.75
    assert got == pytest.approx(INNVESTIGATE[f"alpha_beta {param}"], rel=2e-6)


# ---------------------------------------------------------------- net T

T_X = np.array([[1, -1, 2], [0.5, 2, -1]])
T_REF = np.array([[0.2, -0.4, 0.1]])


def t_layers(last):
    return [
        dense([[1, -2, 0.5], [-1, 0.5, 2], [0.5, 1, -1], [2, 0, 1]], [0.1, -0.2, 0, 0.3], "relu"),
        dense([[1, -1, 2, 0.5], [-0.5, 1, 1, -2]], [0.2, -0.1], last),
    ]


def t_net(last="linear"):
    return ox.convert(layered(t_layers(last), (3,)))


def epsilon(value):
    return ox.LRP, {"rule_name": "epsilon", "rule_param": value}


def alpha(value):
    return ox.LRP, {"rule_name": "alpha_beta", "rule_param": value}


REVEAL_CANCEL = (ox.DeepLift, {"rule_name": "reveal_cancel"})
INNSIGHT = {"like": "innsight"}

T_LINEAR = [  # method, options, x1, x2: (first output, second output) of three features
    (
        (ox.Gradient, {}),
        [(3, -5.5), (-2.5, 1.5), (-1, -0.25)],
        [(2, -3.5), (2, 1), (-1.5, -3)],
    ),
    ((ox.LRP, {}), [(3, -5.5), (2.5, -1.5), (-2, -0.5)], [(1, -1.75), (4, 2), (1.5, 3)]),
    (
        (ox.Gradient, {"times_input": True}),
        [(3, -5.5), (2.5, -1.5), (-2, -0.5)],
        [(1, -1.75), (4, 2), (1.5, 3)],
    ),
    (
        epsilon(0.001),
        [(2.998366561, -5.497862834), (2.498692923, -1.499361421), (-1.998256465, -0.500627191)],
        [(0.998039372, -1.74274895), (3.998185933, 1.99860104), (1.500826835, 2.9918746)],
    ),
    (
        (ox.LRP, {"rule_name": "epsilon", **INNSIGHT}),
        [(2.998366561, -5.497862834), (2.498692923, -1.499361421), (-1.998256465, -0.500627191)],
        [(0.998039372, -1.74274895), (3.998185933, 1.99860104), (1.500826835, 2.9918746)],
    ),
    (
        epsilon(None),
        [(2.983728014, -5.478690051), (2.486976603, -1.493634793), (-1.982659765, -0.506219653)],
        [(0.980905247, -1.679663825), (3.981917044, 1.986076495), (1.507792905, 2.920961635)],
    ),
    (
        alpha(None),
        [(0.931999544, -2.126949384), (0.626852485, -0.817835157), (1.359205426, -2.996802326)],
        [(0.153846154, 0.469368132), (1, 0.392307692), (0.5375, 0.742582418)],
    ),
    (
        alpha(1),
        [(1.286821705, 0), (1.286821705, 0), (1.286821705, -8.45)],
        [(0.615384615, 0.196153846), (4, 1.569230769), (2, 0.784615385)],
    ),
    (
        alpha(2),
        [(7.588463292, 17.015595075), (6.367875057, 6.542681259), (-3.152713178, -26.725581395)],
        [(2.461538462, -2.578021978), (16, 6.276923077), (7.7, 5.324175824)],
    ),
    (
        (ox.DeepLift, {}),
        [(2.281481481, -4.281481481), (1.455555556, -0.855555556), (-1.337037037, -1.037962963)],
        [(0.635440119, -1.100596772), (3.180903296, 2.683520955), (1.283656585, 3.242075817)],
    ),
    (
        REVEAL_CANCEL,
        [(2, -4), (1.35, -0.75), (-0.95, -1.425)],
        [(0.690123288, -0.889438356), (2.707617463, 3.120163871), (1.70225925, 2.594274485)],
    ),
    (
        (ox.IntegratedGradient, {"n": 5}),
        [(2.4, -4.4), (1.5, -0.9), (-1.9, -0.475)],
        [(0.66, -1.08), (3.84, 2.88), (1.54, 3.355)],
    ),
]


def run_t(net, method, options, **more):
    if method in WITH_REFERENCE:
        options = {**options, "x_ref": T_REF}
    return method(net, T_X, dtype="double", **options, **more)


@pytest.mark.parametrize("how, x1, x2", T_LINEAR)
def test_net_t_linear(how, x1, x2):
    got = run_t(t_net(), *how).get_result()
    np.testing.assert_allclose(got, [x1, x2], rtol=0, atol=6e-10)


def test_net_t_predictions_and_connection_weights():
    net = t_net()
    method = run_t(net, ox.DeepLift, {})
    np.testing.assert_allclose(method.preds[0], [[4.15, -8.45], [6.85, 2.55]], rtol=1e-14)
    np.testing.assert_allclose(method.decomp_goal[0], [[2.4, -6.175], [5.1, 4.825]], rtol=1e-14)
    weights = ox.ConnectionWeights(net, dtype="double").get_result()
    np.testing.assert_allclose(weights, [[[4, -5], [-0.5, 2.5], [-3, -1.25]]], rtol=1e-14)


T_LAST = [  # last activation, method: x1, x2
    (
        "softmax",
        (ox.LRP, INNSIGHT),  # starts from the probability minus a half
        [(0.361443346, -0.325441592), (0.301202788, -0.088756798), (-0.24096223, -0.029585599)],
        [(0.071038406, 0.333950154), (0.284153625, -0.381657319), (0.106557609, -0.572485979)],
    ),
    (
        "softmax",
        (ox.DeepLift, INNSIGHT),  # each probability against its own logit only
        [(0.016680054, -0.012166029), (0.010641658, -0.002431101), (-0.009775162, -0.00294942)],
        [(0.000518694, 0.000949594), (0.002596493, -0.002315339), (0.001047817, -0.002797259)],
    ),
    (
        "softmax",
        (ox.Gradient, {}),
        [(2.8662e-05, -2.8662e-05), (-1.3488e-05, 1.3488e-05), (-2.529e-06, 2.529e-06)],
        [(0.072642395, -0.072642395), (0.013207708, -0.013207708), (0.019811562, -0.019811562)],
    ),
    (
        "sigmoid",
        (ox.LRP, INNSIGHT),
        [(0.350226682, -0.325304592), (0.291855568, -0.088719434), (-0.233484455, -0.029573145)],
        [(0.072838199, -0.293432804), (0.291352797, 0.335351776), (0.109257299, 0.503027664)],
    ),
    (
        "sigmoid",
        (ox.DeepLift, {}),
        [(0.125982876, -0.064482833), (0.080375439, -0.01288541), (-0.073830874, -0.015632625)],
        [(0.018314239, -0.190319708), (0.091677914, 0.464045451), (0.03699671, 0.560633049)],
    ),
    (
        "tanh",
        (ox.LRP, {}),
        [(0.722532354, -0.650887514), (0.602110295, -0.177514777), (-0.481688236, -0.059171592)],
        [(0.145985074, -0.677957135), (0.583940295, 0.774808155), (0.218977611, 1.162212232)],
    ),
]


@pytest.mark.parametrize("last, how, x1, x2", T_LAST)
def test_net_t_with_last_activation(last, how, x1, x2):
    got = run_t(t_net(last), *how, ignore_last_act=False).get_result()
    np.testing.assert_allclose(got, [x1, x2], rtol=0, atol=6e-10)


T_REVEAL_CANCEL = [
    (
        "sigmoid",
        [(0.173708115, -0.163202711), (0.113975756, -0.034686455), (-0.15515643, 0.104888297)],
        [(0.050467023, -0.14965515), (0.045660375, 0.504966715), (0.050861466, 0.479047227)],
    ),
    (
        "tanh",
        [(0.390725911, -0.309451208), (0.246010053, -0.069765083), (-0.578608412, 0.358302971)],
        [(0.10238686, -0.352805943), (-0.068891902, 1.190438534), (0.025127259, 1.129334394)],
    ),
]


@pytest.mark.parametrize("like", [None, "innsight"])
@pytest.mark.parametrize("last, x1, x2", T_REVEAL_CANCEL)
def test_net_t_reveal_cancel_with_last_activation(last, x1, x2, like):
    method = run_t(t_net(last), *REVEAL_CANCEL, like=like, ignore_last_act=False)
    got, want = method.get_result(), np.array([x1, x2])
    clean = np.ones(want.shape, bool)
    clean[1, :, 1] = False  # an empty negative part: innsight's shares are rounding noise (NOISE)
    np.testing.assert_allclose(got[clean], want[clean], rtol=0, atol=6e-10)
    np.testing.assert_allclose(got.sum(axis=1), want.sum(axis=1), rtol=0, atol=2e-9)
    np.testing.assert_allclose(got.sum(axis=1), method.decomp_goal[0], rtol=1e-13)


@pytest.mark.parametrize("like", [None, "innsight"])
def test_net_t_reveal_cancel_before_softmax_adds_up_where_division_by_a_stabiliser_explodes(like):
    method = run_t(t_net("softmax"), *REVEAL_CANCEL, like=like, ignore_last_act=False)
    got = method.get_result()
    np.testing.assert_allclose(got.sum(axis=1), method.decomp_goal[0], rtol=0, atol=1e-14)
    assert abs(got).max() < 1  # evaluated literally, innsight's formula gives up to 7e11


def test_net_t_tanh_is_no_probability_and_gets_no_shift():
    method = run_t(t_net("tanh"), ox.LRP, INNSIGHT, ignore_last_act=False)
    np.testing.assert_allclose(method.decomp_goal[0], method.preds[0], rtol=1e-14)


@pytest.mark.parametrize("last", ["softmax", "sigmoid"])
def test_net_t_goal_of_lrp_at_probabilities(last):
    shifted = run_t(t_net(last), ox.LRP, INNSIGHT, ignore_last_act=False)
    np.testing.assert_allclose(shifted.decomp_goal[0], shifted.preds[0] - 0.5, rtol=1e-14)
    plain = run_t(t_net(last), ox.LRP, {}, ignore_last_act=False)
    np.testing.assert_allclose(plain.decomp_goal[0], plain.preds[0], rtol=1e-14)
