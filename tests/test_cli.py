"""The command line, through click's runner and, once, as a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import xarray as xr
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import onnxplain
from onnxplain.cli import METHODS, main
from onnxplain.demo import MODEL, digits


def run(*arguments, code=0):
    """Run a command and return its standard output (code 0) or its standard error."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def fails(*arguments):
    """Run a command that has to fail with one clean line, and return that line."""
    message = run(*arguments, code=2)
    assert message.startswith("onnxplain: error: ")
    assert message.count("\n") == 1
    assert "Traceback" not in message
    return message


@pytest.fixture
def images() -> np.ndarray:
    return digits()[0][:5]


@pytest.fixture
def model(tmp_path) -> Path:
    """The demo model as a file."""
    path = tmp_path / "digits.onnx"
    path.write_bytes(MODEL.read_bytes())
    return path


@pytest.fixture
def data(tmp_path, images) -> Path:
    path = tmp_path / "images.npy"
    np.save(path, images)
    return path


def save(path: Path, nodes, weights, inputs, outputs) -> Path:
    """Write a small model; inputs and outputs map names to shapes."""

    def infos(shapes):
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])
            for name, shape in shapes.items()
        ]

    tensors = [numpy_helper.from_array(np.float32(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "small", infos(inputs), infos(outputs), tensors)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.fixture
def table_model(tmp_path) -> Path:
    """Three features, two output nodes."""
    weights = {"w": [[1, -2], [0.5, 1], [2, 1]], "b": [0.1, -0.2]}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="dense")]
    return save(tmp_path / "table.onnx", nodes, weights, {"x": [3]}, {"y": [2]})


@pytest.fixture
def two_inputs(tmp_path) -> Path:
    """Two inputs of two features, added."""
    nodes = [helper.make_node("Add", ["left", "right"], ["sum"], name="add")]
    return save(tmp_path / "two.onnx", nodes, {}, {"left": [2], "right": [2]}, {"sum": [2]})


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "table.csv"
    pd.DataFrame({"age": [1.0, 2], "fare": [0.5, 3], "name": ["a", "b"], "class": [3, 1]}).to_csv(
        path, index=False
    )
    return path


# inspect


def test_inspect_names_inputs_outputs_and_nodes(model):
    out = run("inspect", model)
    for word in ("image", "probability", "(*, 1, 8, 8)", "opset 17", "12 nodes"):
        assert word in out
    for method in METHODS:
        assert method in out


def test_inspect_says_once_what_holds_for_many_nodes_and_methods():
    out = run("inspect", Path(__file__).parent / "quantised" / "cnn_qdq.onnx")
    said = [line for line in out.splitlines() if line.startswith("inexact")]
    assert [line.partition(":")[0] for line in said] == [
        "inexact (grad, smoothgrad, intgrad, expgrad, gradcam, gradcam++, guided, deconvnet)",
        "inexact (deeplift, deepshap)",
    ]
    assert all(
        re.search(r"\d QuantizeLinear nodes: rounding passes straight", line) for line in said
    )


def test_inspect_with_a_method_lists_every_node(model):
    out = run("inspect", model, "--method", "lrp")
    for node in ("edges", "strokes", "skip", "pool1", "classes", "softmax"):
        assert node in out


def test_inspect_names_the_nodes_that_cannot_be_explained(tmp_path):
    nodes = [helper.make_node("Bernoulli", ["x"], ["y"], name="volume")]
    path = save(tmp_path / "det.onnx", nodes, {}, {"x": [2, 2]}, {"y": []})
    assert "volume" in fails("inspect", path)


def test_inspect_says_what_was_joined(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"], name="weights"),
        helper.make_node("Add", ["xw", "b"], ["y"], name="bias"),
    ]
    weights = {"w": np.ones((2, 3)), "b": np.ones(3)}
    path = save(tmp_path / "linear.onnx", nodes, weights, {"x": [2]}, {"y": [3]})
    assert "weights + bias" in run("inspect", path)


def test_a_tensor_before_an_unknown_operator_can_be_explained(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"], name="relu"),
        helper.make_node("Bernoulli", ["positive"], ["y"], name="volume"),
    ]
    path = save(tmp_path / "det.onnx", nodes, {}, {"x": [2, 2]}, {"y": []})
    np.save(tmp_path / "data.npy", np.ones((1, 2, 2), np.float32))
    out = tmp_path / "result.npz"
    assert "relu" in run("inspect", path, "--outputs", "positive", "--method", "lrp")
    run(
        "explain", path, tmp_path / "data.npy", "--method", "lrp",
        "--outputs", "positive", "--out", out,
    )  # fmt: skip
    with np.load(out) as result:
        np.testing.assert_allclose(result["result"].sum((1, 2)), [[1, 1, 1, 1]], rtol=1e-5)


# explain


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_its_result(method, model, data, tmp_path):
    out = tmp_path / "result.npz"
    run("explain", model, data, "--method", method, "--seed", 1, "--out", out)
    with np.load(out) as result:
        shape = result["result"].shape
        assert shape[1:] == (1, 8, 8, 10)
        assert np.isfinite(result["result"]).all()
        assert result["output_node"].shape == (10,)


def test_npz_holds_what_python_returns(model, data, images, tmp_path):
    out = tmp_path / "result.npz"
    run("explain", model, data, "--method", "lrp", "--rule-name", "epsilon", "--out", out)
    expected = onnxplain.LRP(onnxplain.convert(model), images, rule_name="epsilon")
    with np.load(out) as result:
        np.testing.assert_array_equal(result["result"], expected.get_result("array"))
        np.testing.assert_array_equal(result["pred"], expected.preds[0])
        np.testing.assert_array_equal(result["decomp_sum"], expected.decomp_sum[0])


@pytest.mark.parametrize(
    ("ending", "read"),
    [("csv", pd.read_csv), ("parquet", pd.read_parquet)],
)
def test_tables_hold_one_row_per_value(ending, read, model, data, tmp_path):
    out = tmp_path / f"result.{ending}"
    run("explain", model, data, "--method", "grad", "--output-idx", "3,7", "--out", out)
    assert len(read(out)) == 5 * 64 * 2


@pytest.mark.parametrize("engine", ["scipy", "h5netcdf"])
def test_netcdf_holds_labelled_data(engine, model, data, tmp_path, monkeypatch):
    if engine == "scipy":
        monkeypatch.setattr("onnxplain.files.find_spec", lambda name: None)
    else:
        pytest.importorskip("h5netcdf")
        pytest.importorskip("h5py")
    out = tmp_path / "result.nc"
    names = "null,eins,zwei,drei,vier,fünf,sechs,sieben,acht,neun"
    run("explain", model, data, "--method", "grad", "--out", out, "--output-names", names)
    with xr.open_dataset(out, engine=engine) as result:
        assert result["value"].dims == ("batch", "channel", "height", "width", "output_node")
        assert result["output_node"].astype(str).values[3] == "drei"
        assert result["pred"].shape == (5, 10)


def test_netcdf_of_several_inputs_names_the_missing_package(two_inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("onnxplain.files.find_spec", lambda name: None)
    np.savez(tmp_path / "data.npz", left=np.ones((1, 2)), right=np.ones((1, 2)))
    out = tmp_path / "result.nc"
    message = fails("explain", two_inputs, tmp_path / "data.npz", "--method", "lrp", "--out", out)
    assert "onnxplain[netcdf]" in message


def test_plot_is_a_picture(model, data, tmp_path):
    out = tmp_path / "plot.png"
    run("explain", model, data, "--method", "deeplift", "--plot", out, "--data-idx", "0,2")
    with Image.open(out) as image:
        assert min(image.size) > 100


def test_columns_of_a_table_name_the_features(table_model, table, tmp_path):
    out = tmp_path / "result.csv"
    run(
        "explain", table_model, table, "--method", "grad", "--times-input",
        "--columns", "age,fare,class", "--output-idx", "0", "--out", out,
    )  # fmt: skip
    result = pd.read_csv(out)
    value = result[result["data"] == "data_1"].set_index("feature")["value"]
    assert value.to_dict() == pytest.approx({"age": 1.0, "fare": 0.25, "class": 6.0})


def test_npz_data_are_matched_by_input_name(two_inputs, tmp_path):
    data, out = tmp_path / "data.npz", tmp_path / "result.npz"
    np.savez(data, right=np.float32([[3, 4]]), other=np.zeros(7), left=np.float32([[1, 2]]))
    run("explain", two_inputs, data, "--method", "grad", "--times-input", "--out", out)
    with np.load(out) as result:
        np.testing.assert_allclose(np.diagonal(result["Input_1/result"][0]), [1, 2])
        np.testing.assert_allclose(np.diagonal(result["Input_2/result"][0]), [3, 4])


def test_images_are_read_scaled_and_stacked(model, images, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, image in zip(files, images, strict=False):
        Image.fromarray(np.uint8(image[0] * 255)).save(file)
    out = tmp_path / "result.npz"
    run("explain", model, *files, "--method", "grad", "--out", out)
    expected = onnxplain.convert(model)(np.uint8(images[:2] * 255).astype(np.float32) / 255)
    with np.load(out) as result:
        np.testing.assert_allclose(result["pred"], expected[0], rtol=1e-5)


def test_an_image_of_another_size_needs_resize(model, tmp_path):
    file = tmp_path / "large.png"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(file)
    assert "30x20" in fails("explain", model, file, "--method", "grad")
    run("explain", model, file, "--method", "grad", "--resize")


def test_scale_mean_and_std_are_applied_in_this_order(table_model, tmp_path):
    data, out = tmp_path / "data.npy", tmp_path / "result.npz"
    np.save(data, np.array([[10, 20, 30]], np.uint8))
    run(
        "explain", table_model, data, "--method", "grad", "--times-input", "--out", out,
        "--scale", 10, "--mean", "1,1,2", "--std", "2", "--output-idx", 0,
    )  # fmt: skip
    with np.load(out) as result:
        np.testing.assert_allclose(result["result"][0, :, 0], [0, 0.25, 1], rtol=1e-6)


def test_a_reference_file_is_used(table_model, tmp_path):
    for name, values in {"data": [[1, 1, 1]], "reference": [[1, 0, 1]]}.items():
        np.save(tmp_path / f"{name}.npy", np.float32(values))
    out = tmp_path / "result.npz"
    run(
        "explain", table_model, tmp_path / "data.npy", "--method", "deeplift", "--out", out,
        "--reference", tmp_path / "reference.npy",
    )  # fmt: skip
    with np.load(out) as result:
        np.testing.assert_allclose(result["result"][0], [[0, 0], [0.5, 1], [0, 0]], atol=1e-6)


def test_labels_and_numbers_choose_the_same_nodes(model, data, tmp_path):
    results = []
    for option in (("--output-idx", "2,4"), ("--output-label", "two,four")):
        out = tmp_path / "result.npz"
        run("explain", model, data, "--method", "lrp", *option, "--out", out)
        with np.load(out) as result:
            results.append(result["result"])
    np.testing.assert_array_equal(*results)


def test_rules_are_given_per_layer_type(model, data, images, tmp_path):
    out = tmp_path / "result.npz"
    run(
        "explain", model, data, "--method", "lrp", "--out", out,
        "--rule-name", "Conv=alpha_beta", "--rule-name", "Gemm=epsilon", "--rule-param", "Conv=2",
    )  # fmt: skip
    rules = {"rule_name": {"Conv": "alpha_beta", "Gemm": "epsilon"}, "rule_param": {"Conv": 2.0}}
    expected = onnxplain.LRP(onnxplain.convert(model), images, **rules).get_result("array")
    with np.load(out) as result:
        np.testing.assert_array_equal(result["result"], expected)


def test_the_same_seed_gives_the_same_result(model, data, tmp_path):
    results = []
    for seed in (1, 1, 2):
        out = tmp_path / "result.npz"
        run("explain", model, data, "--method", "smoothgrad", "--seed", seed, "--out", out)
        with np.load(out) as result:
            results.append(result["result"])
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_connection_weights_need_no_data(model, tmp_path):
    out = tmp_path / "result.npz"
    run("explain", model, "--method", "cw", "--out", out)
    with np.load(out) as result:
        assert result["result"].shape == (1, 1, 8, 8, 10)


def test_a_summary_says_whether_it_adds_up(model, data):
    out = run("explain", model, data, "--method", "deeplift", "--dtype", "double")
    assert "data_1" in out
    assert "gap" in out
    assert run("explain", model, data, "--method", "deeplift", "--quiet") == ""


# mistakes


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--method", "grad", "--rule-name", "epsilon"], "--times-input"),
        (["--method", "lrp", "--n", "5"], "--rule-name"),
        (["--method", "lrp", "--reference", "images.npy"], "--reference"),
        (["--method", "lrp", "--rule-name", "epsilonn"], "epsilonn"),
        (["--method", "lrp", "--rule-param", "much"], "much"),
        (["--method", "lrp", "--rule-name", "epsilon", "--rule-name", "Conv=pass"], "KEY=VALUE"),
        (["--method", "lrp", "--output-idx", "10"], "10"),
        (["--method", "lrp", "--output-label", "eleven"], "eleven"),
        (["--method", "lrp", "--out", "result.txt"], ".parquet"),
        (["--method", "lrp", "--plot", "plot.npz"], ".svg"),
        (["--method", "lrp", "--out", "images.npy"], ".npz"),
        (["--method", "lrp", "--out", "absent/result.npz"], "cannot be written"),
        (["--method", "lrp", "--like", "nobody"], "nobody"),
        (["--method", "lrp", "--mean", "1,2,3"], "--mean"),
        (["--method", "smoothgrad", "--n", "0"], "n"),
        (["--method", "intgrad", "--reference", "absent.npy"], "absent.npy"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_one_line(arguments, word, model, data, monkeypatch):
    monkeypatch.chdir(data.parent)
    assert word in fails("explain", model, data, *arguments)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("absent.npy", None, "no such file"),
        ("random.npy", b"no array", "random.npy"),
        ("random.npz", b"PK\x03\x04 no archive", "random.npz"),
        ("random.csv", b"\xff\xfe\x00", "random.csv"),
        ("empty.csv", b"", "empty.csv"),
        ("random.parquet", b"PAR1", "random.parquet"),
        ("random.png", b"\x89PNG", "random.png"),
        ("words.csv", b"a,b\nx,y\n", "--columns"),
        ("narrow.csv", b"a,b\n1,2\n", "64"),
        ("data.mat", b"", ".npy"),
    ],
)
def test_bad_data_are_one_line(name, content, word, model, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert word in fails("explain", model, path, "--method", "grad")


def test_one_array_for_two_inputs_is_refused(two_inputs, data):
    assert "2 inputs" in fails("explain", two_inputs, data, "--method", "grad")


def test_arrays_with_other_names_are_refused(two_inputs, tmp_path):
    np.savez(tmp_path / "data.npz", a=np.zeros((1, 2)), b=np.zeros((1, 2)))
    assert "left" in fails("explain", two_inputs, tmp_path / "data.npz", "--method", "grad")


def test_pickled_data_are_refused(model, tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    assert "objects.npy" in fails("explain", model, tmp_path / "objects.npy", "--method", "grad")


def test_a_wrong_shape_is_one_line(model, tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((2, 1, 8, 9), np.float32))
    assert "9" in fails("explain", model, tmp_path / "wide.npy", "--method", "grad")


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_a_bad_model_is_one_line(content, tmp_path):
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    fails("inspect", path)


def test_data_are_never_overwritten(two_inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", left=np.zeros((1, 2)), right=np.zeros((1, 2)))
    before = Path("data.npz").read_bytes()
    fails("explain", two_inputs, "data.npz", "--method", "grad", "--out", "./data.npz")
    assert Path("data.npz").read_bytes() == before


def test_nothing_is_left_behind_when_the_work_fails(model, tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((2, 1, 8, 9), np.float32))
    out = tmp_path / "result.npz"
    fails("explain", model, tmp_path / "wide.npy", "--method", "grad", "--out", out)
    assert not out.exists()


# demo, README and process


def test_demo_explains_and_draws(tmp_path):
    out = run("demo", "--out", tmp_path / "new")
    assert "DeepLIFT" in out
    with Image.open(tmp_path / "new" / "onnxplain-demo.png") as image:
        assert min(image.size) > 400


def test_demo_into_a_file_is_one_line(data):
    assert "cannot be written" in fails("demo", "--out", data)


def test_the_readme_is_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readme = Path(__file__).resolve().parents[1] / "README.md"
    blocks = re.findall(r"^```python\n(.*?)^```", readme.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 2
    exec("\n".join(blocks), {})
    assert onnxplain.load("digits.npz").get_result().shape == (3, 1, 8, 8, 10)


def test_the_demo_model_reads_digits_well():
    images, labels = digits()
    probability = onnxplain.convert(MODEL)(images)[0]
    assert (probability.argmax(1) == labels).mean() >= 0.96


def test_command_runs_as_a_process(data):
    script = Path(sys.executable).with_name("onnxplain")
    version = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert (version.returncode, version.stderr) == (0, "")
    assert version.stdout.startswith("onnxplain, version ")
    wrong = subprocess.run([script, "inspect", data], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("onnxplain: error: ")
    assert "Traceback" not in wrong.stderr
