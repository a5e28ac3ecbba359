"""Every differentiable kernel keeps what its passes promise."""

from dataclasses import asdict

import numpy as np
import pytest

from onnxplain.kernels.base import _REGISTRY
from onnxplain.testing import check_kernel

from .kernel_cases import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_keeps_its_promises(case):
    passes = check_kernel(**asdict(case))
    assert {"gradient", "deeplift", "relevance"} <= set(passes)


def test_every_differentiable_kernel_has_a_case():
    classes = {c for kernels in _REGISTRY.values() for _, c in kernels}
    differentiable = {c for c in classes if c.family != "constant"}
    missing = differentiable - {case.kernel_class for case in CASES}
    assert sorted(c.__name__ for c in missing) == []
