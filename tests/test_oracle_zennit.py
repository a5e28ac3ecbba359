"""zennit gives the same relevances."""

import pytest

from oracles import import_zennit, of

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.mark.parametrize(**of("zennit"))
def test_agrees_with_zennit(question):
    pytest.importorskip("torch")
    try:
        import_zennit()
    except ImportError:
        pytest.skip("zennit is not installed")
    question.check(question.their_answer())
