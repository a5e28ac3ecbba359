"""Asks torch, captum and zennit the questions of tests/oracles.py and stores their answers.

python tests/frozen/make.py, with extra "oracle" installed.
"""

import sys
import warnings
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))


def main():
    from oracles import QUESTIONS

    warnings.simplefilter("ignore")
    for library in dict.fromkeys(q.library for q in QUESTIONS):
        answers = {q.key: q.their_answer() for q in QUESTIONS if q.library == library}
        np.savez_compressed(FOLDER / f"{library}.npz", **answers)


if __name__ == "__main__":
    main()
