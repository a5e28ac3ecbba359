"""Write the transformers of this folder: small, of random weights, with a case of torch each.

`python tests/transformer_models/make.py` needs torch, onnxscript and onnxruntime.
"""

import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional as F

FOLDER = Path(__file__).parent
WORDS, TOKENS, WIDTH, HEADS, CLASSES = 29, 6, 16, 2, 3


class Encoder(nn.Module):
    """Attention as torch's own layers make it."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


class Block(nn.Module):
    """Normalisation first, then attention and two dense layers, each with a way around it."""

    def __init__(self, causal=False, approximate="none"):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.causal, self.approximate = causal, approximate

    def forward(self, x):
        n, tokens, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, tokens, 3, HEADS, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(n, tokens, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate=self.approximate))


class Vision(nn.Module):
    """Patches of an image and a token for the class."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, 10, WIDTH))
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


class Decoder(nn.Module):
    """Words in order, each seeing those before it; scores of the word after the last."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.Sequential(Block(True, "tanh"), Block(True, "tanh"))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids):
        x = self.words(ids) + self.places.weight
        return self.norm(self.blocks(x))[:, -1] @ self.words.weight[:CLASSES].T


class BertLayer(nn.Module):
    """Attention spelled out, with a mask that is added; normalisation last."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.norm1 = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH, eps=1e-12)
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-12)

    def heads(self, x):
        return x.view(x.shape[0], x.shape[1], HEADS, WIDTH // HEADS).permute(0, 2, 1, 3)

    def forward(self, x, mask):
        q, k, v = (self.heads(f(x)) for f in (self.query, self.key, self.value))
        scores = torch.matmul(q, k.transpose(-1, -2)) / (WIDTH // HEADS) ** 0.5
        y = torch.matmul(torch.softmax(scores + mask, dim=-1), v)
        y = y.permute(0, 2, 1, 3).reshape(x.shape[0], x.shape[1], WIDTH)
        x = self.norm1(self.out(y) + x)
        return self.norm2(self.down(F.gelu(self.up(x))) + x)


class Bert(nn.Module):
    """Words, a mask of those that are there, two layers, and classes from the first word."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.kinds, self.norm = nn.Embedding(2, WIDTH), nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList([BertLayer(), BertLayer()])
        self.pool, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, ids, mask):
        places = torch.arange(TOKENS)[None]
        x = self.norm(self.words(ids) + self.kinds(torch.zeros_like(ids)) + self.places(places))
        mask = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(torch.float32).min
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(torch.tanh(self.pool(x[:, 0])))


# Module, opset, and whether torch.export or the older tracing exporter writes the file.
MODELS = {
    "encoder": (Encoder, 23, True),
    "vision": (Vision, 18, True),
    "decoder": (Decoder, 20, True),
    "bert": (Bert, 14, False),
}


def module(name):
    """Return a module in float64 with seeded weights, no scale or shift of it 1 or 0."""
    torch.manual_seed(sum(map(ord, name)))
    made = MODELS[name][0]().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            spread = 0.3 if parameter.ndim == 1 else 0
            parameter += spread * torch.randn_like(parameter)
    return made.double()


def data(name, rows=3, seed=1):
    """Return inputs by name, floats in float64."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, WORDS, (rows, TOKENS))
    mask = (np.arange(TOKENS) < rng.integers(3, TOKENS + 1, (rows, 1))).astype(np.int64)
    return {
        "encoder": {"x": rng.normal(size=(rows, TOKENS, WIDTH))},
        "vision": {"x": rng.normal(size=(rows, 3, 12, 12))},
        "decoder": {"ids": ids},
        "bert": {"ids": ids, "mask": mask},
    }[name]


def answers(name, inputs):
    """Return torch's outputs and their gradients by the input, or by the embedded words."""
    made, kept = module(name), []
    tensors = [torch.from_numpy(v) for v in inputs.values()]
    if hasattr(made, "words"):
        made.words.register_forward_hook(lambda *call: kept.append(call[-1]))
    else:
        kept.append(tensors[0].requires_grad_())
    out = made(*tensors)
    columns = [
        torch.autograd.grad(out[:, k].sum(), kept[0], retain_graph=True)[0] for k in range(CLASSES)
    ]
    return out.detach().numpy(), torch.stack(columns, -1).numpy()


def export(name, file, opset=None, dynamo=None):
    """Write a module in float32 as ONNX."""
    opset = MODELS[name][1] if opset is None else opset
    dynamo = MODELS[name][2] if dynamo is None else dynamo
    inputs = data(name)
    args = tuple(
        torch.from_numpy(v.astype("float32") if v.dtype.kind == "f" else v) for v in inputs.values()
    )
    made, names = module(name).float(), list(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            batch = torch.export.Dim("batch")
            more = {"dynamic_shapes": tuple({0: batch} for _ in names), "external_data": False}
        else:
            more = {"dynamic_axes": {n: {0: "batch"} for n in names}}
        torch.onnx.export(
            made,
            args,
            file,
            input_names=names,
            dynamo=dynamo,
            opset_version=opset,
            verbose=False,
            **more,
        )
    proto = onnx.load(file)
    for node in proto.graph.node:
        del node.metadata_props[:]  # paths of the author's machine
    onnx.save(proto, file)


def fuse(file, fused):
    """Write a model as onnxruntime's optimiser for transformers fuses it."""
    from onnxruntime.transformers import optimizer

    made = optimizer.optimize_model(
        str(file), model_type="bert", num_heads=HEADS, hidden_size=WIDTH, opt_level=0
    )
    made.save_model_to_file(str(fused))


def main():
    logging.disable(logging.WARNING)
    for name in MODELS:
        file = FOLDER / f"{name}.onnx"
        export(name, file)
        inputs = data(name)
        out, gradient = answers(name, inputs)
        np.savez_compressed(FOLDER / f"{name}.npz", output=out, gradient=gradient, **inputs)
    fuse(FOLDER / "bert.onnx", FOLDER / "bert_fused.onnx")
    for file in sorted(FOLDER.glob("*.*")):
        print(file.name, file.stat().st_size, file=sys.stdout)


if __name__ == "__main__":
    main()
