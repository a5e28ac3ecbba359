"""Results of methods that never ran, for tests of plots."""

from types import SimpleNamespace

import numpy as np

from onnxplain import results

AXES = {1: "X", 2: "CL", 3: "CHW", 4: "CDHW"}


def fake_method(*input_dims, nodes=((0, 1),), batch=3, channels_first=True, seed=1, **fields):
    """A stand-in with random results; `nodes` holds the explained nodes of each output of 3."""
    rng = np.random.default_rng(seed)

    def layout(dim):
        return dim if channels_first or len(dim) < 2 else (*dim[1:], dim[0])

    selected = [idx for idx in nodes if idx is not None]
    method = SimpleNamespace(
        method_name="DeepLift",
        value_name="Contribution",
        channels_first=channels_first,
        is_global=False,
        input_names=[
            [[f"{a}{k + 1}" for k in range(n)] for a, n in zip(AXES[len(dim)], dim, strict=True)]
            for dim in input_dims
        ],
        output_names=[[["setosa", "versicolor", "virginica"]] for _ in nodes],
        output_idx=[None if idx is None else list(idx) for idx in nodes],
        result=[
            [rng.normal(size=(batch, *layout(dim), len(idx))) for dim in input_dims]
            for idx in selected
        ],
        preds=[rng.normal(size=(batch, 3)) for _ in nodes],
        decomp_goal=[rng.normal(size=(batch, len(idx))) for idx in selected],
        data=[rng.normal(size=(batch, *dim)) for dim in input_dims],
    )
    vars(method).update(fields)
    method.decomp_sum = results.decomp_sum(method)
    return method
