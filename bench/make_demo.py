"""Train the demo model on scikit-learn's handwritten digits and write it with a few test images.

    python -m bench.make_demo            # needs the extra "oracle": torch and scikit-learn

Writes `digits.onnx` and `digits.npz` into `onnxplain/demo/`, and prints the test accuracy. The
graph is built node by node, so that its names are pleasant to read; torch only finds the weights.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FOLDER = Path(__file__).resolve().parents[1] / "onnxplain" / "demo"
CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SEED = 7
N_IMAGES = 50


def load():
    """Return images (n, 1, 8, 8) to train and to test with, values 0 to 16, and their labels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = digits.images[:, None].astype(np.uint8)
    return train_test_split(
        images, digits.target, test_size=0.25, random_state=SEED, stratify=digits.target
    )


def train(images: np.ndarray, labels: np.ndarray, epochs: int) -> dict[str, np.ndarray]:
    """Return the trained weights by name."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy, max_pool2d

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.edges = nn.Conv2d(1, 12, 3, padding=1)
            self.strokes = nn.Conv2d(12, 12, 3, padding=1)
            self.shapes = nn.Conv2d(12, 24, 3, padding=1)
            self.classes = nn.Linear(24 * 2 * 2, 10)

        def forward(self, x):
            x = self.edges(x).relu()
            x = max_pool2d((x + self.strokes(x)).relu(), 2)
            x = max_pool2d(self.shapes(x).relu(), 2)
            return self.classes(nn.functional.dropout(x.flatten(1), 0.3, self.training))

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    net = Net()
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    steps_per_epoch = -(-len(x) // 32)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs * steps_per_epoch)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(32):
            # A shift by up to one pixel makes more of 1300 images.
            shift = tuple(torch.randint(-1, 2, (2,)).tolist())
            loss = cross_entropy(net(x[rows].roll(shift, (2, 3))), y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return {name: value.detach().numpy() for name, value in net.state_dict().items()}


def build(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return the network as an ONNX model: convolutions, one with a skip, and a classifier."""
    node, conv = helper.make_node, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}

    def layer(op, name, x, y, **attributes):
        inputs = [x, f"{name}.weight", f"{name}.bias"]
        return node(op, inputs, [y], name=name, **attributes)

    nodes = [
        layer("Conv", "edges", "image", "edges_out", **conv),
        node("Relu", ["edges_out"], ["edges_act"], name="edges_relu"),
        layer("Conv", "strokes", "edges_act", "strokes_out", **conv),
        node("Add", ["edges_act", "strokes_out"], ["skip_out"], name="skip"),
        node("Relu", ["skip_out"], ["skip_act"], name="skip_relu"),
        node("MaxPool", ["skip_act"], ["pool1_out"], name="pool1", **pool),
        layer("Conv", "shapes", "pool1_out", "shapes_out", **conv),
        node("Relu", ["shapes_out"], ["shapes_act"], name="shapes_relu"),
        node("MaxPool", ["shapes_act"], ["pool2_out"], name="pool2", **pool),
        node("Flatten", ["pool2_out"], ["features"], name="flatten"),
        layer("Gemm", "classes", "features", "score", transB=1),
        node("Softmax", ["score"], ["probability"], name="softmax", axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    # Opset 17 with its IR version: every runtime in use reads it.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.producer_name = "onnxplain"
    onnx.checker.check_model(model, full_check=True)
    return model


def accuracy(model: onnx.ModelProto, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images that the stored model, run by ONNX's own evaluator, gets right."""
    from onnx.reference import ReferenceEvaluator

    x = (images / 16).astype(np.float32)
    probability = ReferenceEvaluator(model).run(None, {"image": x})[0]
    return float((probability.argmax(1) == labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write into")
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args()

    x_train, x_test, y_train, y_test = load()
    model = build(train(x_train, y_train, arguments.epochs))
    reached = accuracy(model, x_test, y_test)
    helper.set_model_props(
        model,
        {
            "class_names": json.dumps(CLASSES),
            "data": "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, "
            "UCI Machine Learning Repository, CC BY 4.0, as shipped with scikit-learn",
            "input": "8x8 grey values, divided by 16",
            "test_accuracy": f"{reached:.4f} on {len(y_test)} images",
        },
    )
    onnx.save(model, arguments.out / "digits.onnx")
    np.savez_compressed(
        arguments.out / "digits.npz",
        image=x_test[:N_IMAGES],
        label=y_test[:N_IMAGES].astype(np.uint8),
    )
    print(f"test accuracy {reached:.4f} on {len(y_test)} images, trained on {len(y_train)}")
    for name in ("digits.onnx", "digits.npz"):
        print(f"{name}: {(arguments.out / name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
