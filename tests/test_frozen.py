"""Answers of torch, captum and zennit that were stored, for where these are not installed."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from oracles import QUESTIONS

FOLDER = Path(__file__).parent / "frozen"


@lru_cache
def answers(library):
    with np.load(FOLDER / f"{library}.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize("question", QUESTIONS, ids=[q.key for q in QUESTIONS])
def test_agrees_with_a_stored_answer(question):
    question.check(answers(question.library)[question.key])


def test_every_stored_answer_is_compared():
    for library in {q.library for q in QUESTIONS}:
        assert set(answers(library)) == {q.key for q in QUESTIONS if q.library == library}
