"""Write the vision models of this folder: small, of random weights, with a case of torch each.

`cd tests; python -m vision.make` needs torch and onnxscript.
"""

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional as F
from vision.cases import places

FOLDER = Path(__file__).parent
SIDE, CLASSES, REGIONS = 16, 3, 4
OPSET = 18


def block(before, after):
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    """Down twice and up twice, with a way across at each size; scores of classes per pixel."""

    def __init__(self, transposed):
        super().__init__()
        self.transposed = transposed
        self.down1, self.down2, self.middle = block(3, 4), block(4, 8), block(8, 12)
        self.up2, self.up1 = (
            nn.ConvTranspose2d(c, c, 2, stride=2) if transposed else nn.Conv2d(c, c, 1)
            for c in (12, 8)
        )
        self.join2, self.join1 = block(12 + 8, 8), block(8 + 4, 6)
        self.head = nn.Conv2d(6, 1 if transposed else 2, 1)

    def up(self, layer, x):
        if self.transposed:
            return layer(x)
        return layer(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))

    def forward(self, x):
        x1 = self.down1(x)
        x2 = self.down2(F.max_pool2d(x1, 2))
        x = self.middle(F.max_pool2d(x2, 2))
        x = self.join2(torch.cat([self.up(self.up2, x), x2], 1))
        x = self.head(self.join1(torch.cat([self.up(self.up1, x), x1], 1)))
        return torch.sigmoid(x) if self.transposed else x


class Backbone(nn.Module):
    """Features at a quarter and an eighth of the size."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(6, 8, 3, padding=1),
            nn.BatchNorm2d(8), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
        )  # fmt: skip
        self.next = nn.Sequential(nn.Conv2d(8, 10, 3, stride=2, padding=1), nn.ReLU())

    def forward(self, x):
        near = self.stem(x)
        return near, self.next(near)


class Yolo(nn.Module):
    """Boxes (corners) and scores of anchors at two sizes, decoded from cells."""

    STEPS, ANCHORS = (4, 8), (((3.0, 4.0), (6.0, 5.0)), ((9.0, 7.0), (12.0, 14.0)))

    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.heads = nn.ModuleList(nn.Conv2d(c, 2 * (5 + CLASSES), 1) for c in (8, 10))

    def decode(self, x, step, anchors):
        n, _, high, wide = x.shape
        x = x.view(n, 2, 5 + CLASSES, high, wide).permute(0, 1, 3, 4, 2)
        rows, columns = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
        cells = torch.stack([columns, rows], -1).to(x.dtype)
        sizes = torch.tensor(anchors, dtype=x.dtype).view(1, 2, 1, 1, 2)
        middle, size, scores = x.split([2, 2, 1 + CLASSES], -1)
        middle = (torch.sigmoid(middle) * 2 - 0.5 + cells) * step
        size = torch.exp(size.clamp(max=2)) * sizes / 2
        scores = torch.sigmoid(scores[..., :1]) * torch.sigmoid(scores[..., 1:])
        boxes = torch.cat([middle - size, middle + size], -1)
        return boxes.reshape(n, -1, 4), scores.reshape(n, -1, CLASSES)

    def forward(self, x):
        levels = zip(self.backbone(x), self.heads, self.STEPS, self.ANCHORS, strict=True)
        found = [self.decode(head(z), *more) for z, head, *more in levels]
        boxes, scores = zip(*found, strict=True)
        return torch.cat(boxes, 1), torch.cat(scores, 1)


class Ssd(nn.Module):
    """Class probabilities and offsets of boxes, of which the three likeliest are picked."""

    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.boxes = nn.ModuleList(nn.Conv2d(c, 2 * 4, 3, padding=1) for c in (8, 10))
        self.classes = nn.ModuleList(nn.Conv2d(c, 2 * CLASSES, 3, padding=1) for c in (8, 10))
        self.priors = nn.Parameter(4 + 8 * torch.rand(1, 40, 4))

    def forward(self, x):
        maps = self.backbone(x)
        n = x.shape[0]
        boxes, scores = (
            torch.cat(
                [f(z).permute(0, 2, 3, 1).reshape(n, -1, k) for f, z in zip(of, maps, strict=True)],
                1,
            )
            for of, k in ((self.boxes, 4), (self.classes, CLASSES))
        )
        middle = self.priors[..., :2] + boxes[..., :2] * 0.1 * self.priors[..., 2:]
        boxes = torch.cat([middle, self.priors[..., 2:] * torch.exp(boxes[..., 2:] * 0.2)], -1)
        scores = torch.softmax(scores, -1)
        best, place = scores[..., 1:].amax(-1).topk(3)
        rows = torch.arange(n)[:, None].expand(-1, 3)
        return best, boxes[rows, place], scores


class Regions(nn.Module):
    """First stage of two: features, regions of each image, and the image of each region."""

    def __init__(self, proposed):
        super().__init__()
        self.backbone, self.proposed = Backbone(), proposed
        self.propose = nn.Conv2d(8, 5, 1)
        corners = [[0, 0, 15, 15], [1, 2, 9, 8], [6, 5, 14, 15], [3, 7, 12, 13]]
        self.register_buffer("corners", torch.tensor(corners, dtype=torch.float32))

    def regions(self, features):
        n = features.shape[0]
        if not self.proposed:
            return self.corners[None].expand(n, -1, -1)
        found = self.propose(features).flatten(2).transpose(1, 2)
        place = found[..., 0].topk(REGIONS).indices[..., None].expand(-1, -1, 4)
        found = torch.sigmoid(found[..., 1:].gather(1, place)) * 7
        return torch.cat([found[..., :2], found[..., 2:] + 8], -1)

    def forward(self, x):
        features = self.backbone(x)[0]
        n = features.shape[0]
        images = torch.arange(n)[:, None].expand(n, REGIONS).reshape(-1)
        return features, self.regions(features).reshape(-1, 4), images


class Head(nn.Module):
    """Second stage: classes of each region."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(8 * 9, 12), nn.ReLU(), nn.Linear(12, CLASSES)
        )

    def forward(self, regions):
        return self.layers(regions).reshape(-1, REGIONS, CLASSES)


ROI = {
    "mode": "avg",
    "output_height": 3,
    "output_width": 3,
    "sampling_ratio": 2,
    "spatial_scale": 0.25,
    "coordinate_transformation_mode": "half_pixel",
}


def roi_align(features, regions, images):
    """Mean of two by two bilinear readings in each of three by three bins; regions are given."""
    at = (torch.arange(6, dtype=features.dtype) + 0.5) / 6
    x0, y0, x1, y1 = (regions.detach() * ROI["spatial_scale"] - 0.5).T[..., None]
    side = features.shape[-1]
    x, y = ((2 * (a + at * (b - a)) + 1) / side - 1 for a, b in ((x0, x1), (y0, y1)))
    grid = torch.stack([x[:, None].expand(-1, 6, -1), y[:, :, None].expand(-1, -1, 6)], -1)
    read = F.grid_sample(features[images], grid, padding_mode="border", align_corners=False)
    return F.avg_pool2d(read, 2)


class TwoStage(nn.Module):
    """Regions of the features, read by RoiAlign, and their classes."""

    def __init__(self, proposed):
        super().__init__()
        self.first, self.second = Regions(proposed), Head()

    def forward(self, x):
        return self.second(roi_align(*self.first(x)))


MODELS = {
    "unet_resize": lambda: UNet(False),
    "unet_transposed": lambda: UNet(True),
    "yolo": Yolo,
    "ssd": Ssd,
    "regions": lambda: TwoStage(False),
    "proposals": lambda: TwoStage(True),
}
OUTPUTS = {
    "unet_resize": ["pixels"],
    "unet_transposed": ["pixels"],
    "yolo": ["boxes", "scores"],
    "ssd": ["best", "best_boxes", "scores"],
    "regions": ["classes"],
    "proposals": ["classes"],
}


def module(name):
    """Return a module in float64 with seeded weights, no scale or shift of it 1 or 0."""
    torch.manual_seed(sum(map(ord, name)))
    made = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            spread = 0.2 if parameter.ndim == 1 else 0
            parameter += spread * torch.randn_like(parameter)
        for layer in made.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.2)
                layer.running_var.uniform_(0.5, 1.5)
    return made.double()


def data(rows=2, seed=1):
    """Return images in float64, each with a bright patch."""
    rng = np.random.default_rng(seed)
    x = 0.5 * rng.normal(size=(rows, 3, SIDE, SIDE))
    for image, (row, column) in zip(x, rng.integers(0, SIDE - 6, (rows, 2)), strict=True):
        image[:, row : row + 6, column : column + 6] += rng.normal(size=(3, 1, 1)) + 1
    return x


def answers(name, x):
    """Return torch's outputs, and the gradients of a few nodes of each."""
    made, x = module(name), torch.from_numpy(x).requires_grad_()
    found = made(x)
    found = dict(zip(OUTPUTS[name], found if isinstance(found, tuple) else (found,), strict=True))
    gradients = {}
    for output, y in found.items():
        columns = [
            torch.autograd.grad(y[(slice(None), *place)].sum(), x, retain_graph=True)[0]
            for place in places(y.shape[1:])
        ]
        gradients[output] = torch.stack(columns, -1).numpy()
    return {k: y.detach().numpy() for k, y in found.items()}, gradients


def written(made, args, inputs, outputs, opset=OPSET):
    """Return a module in float32 as torch.export and its exporter write it, for any batch size."""
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            made, args, dynamo=True, opset_version=opset, input_names=inputs, verbose=False,
            output_names=outputs, dynamic_shapes=({0: batch},) * len(args),
        )  # fmt: skip
    proto = onnx.load_from_string(program.model_proto.SerializeToString())
    for node in proto.graph.node:
        del node.metadata_props[:]  # paths of the author's machine
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del value.metadata_props[:]
    return proto


def export(name, opset=OPSET):
    """Return a model as ONNX."""
    made, x = module(name).float(), torch.from_numpy(data().astype(np.float32))
    if isinstance(made, TwoStage):
        return two_stages(made, x, opset)
    proto = written(made, (x,), ["x"], OUTPUTS[name], opset)
    return suppressed(proto) if name == "yolo" else proto


def suppressed(proto):
    """Add what drops boxes that overlap better ones, as detectors are deployed."""
    graph, helper = proto.graph, onnx.helper
    graph.node.append(helper.make_node("Transpose", ["scores"], ["by_class"], perm=[0, 2, 1]))
    numbers = {"most": np.int64([5]), "overlap": np.float32([0.5]), "least": np.float32([0.1])}
    for key, value in numbers.items():
        graph.initializer.append(onnx.numpy_helper.from_array(value, key))
    inputs = ["boxes", "by_class", *numbers]
    graph.node.append(helper.make_node("NonMaxSuppression", inputs, ["selected"]))
    graph.output.append(
        helper.make_tensor_value_info("selected", onnx.TensorProto.INT64, (None, 3))
    )
    return proto


def two_stages(made, x, opset):
    """Return both stages with RoiAlign between them, which torch has in another library."""
    features, regions, images = made.first(x)
    args = (roi_align(features, regions, images).detach(),)
    names = ["features", "regions", "images"]
    first = written(made.first, (x,), ["x"], names, opset)
    second = onnx.compose.add_prefix(
        written(made.second, args, ["read"], ["classes"], opset), "second/"
    )
    graph = first.graph
    del graph.output[:]
    graph.node.append(onnx.helper.make_node("RoiAlign", names, ["second/read"], **ROI))
    graph.node.extend(second.graph.node)
    graph.node.append(onnx.helper.make_node("Identity", ["second/classes"], ["classes"]))
    graph.initializer.extend(second.graph.initializer)
    graph.output.extend(second.graph.output)
    graph.output[0].name = "classes"
    return first


def main():
    logging.disable(logging.WARNING)
    for name in MODELS:
        onnx.save(export(name), FOLDER / f"{name}.onnx")
        x = data()
        outputs, gradients = answers(name, x)
        stored = {f"output/{k}": v for k, v in outputs.items()}
        stored |= {f"gradient/{k}": v.astype(np.float32) for k, v in gradients.items()}
        np.savez_compressed(FOLDER / f"{name}.npz", x=x.astype(np.float32), **stored)
    for file in sorted(FOLDER.glob("*.[on]*")):
        print(file.name, file.stat().st_size)


if __name__ == "__main__":
    main()
