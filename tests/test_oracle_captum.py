"""captum gives the same numbers where it is right."""

import pytest

from oracles import of

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.mark.parametrize(**of("captum"))
def test_agrees_with_captum(question):
    pytest.importorskip("captum")
    question.check(question.their_answer())
