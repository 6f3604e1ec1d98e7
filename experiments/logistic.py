"""One-hot logistic regression on the same features, a baseline of the deep models.

    python -m experiments.logistic --data data/kuairand --run runs/kuairand_mmoe

Each categorical id is a column; numericals are unchanged. CTR and CTCVR have one
regression each, on all train rows, for several strengths of the L2 penalty (C=1 is
scikit-learn's default). A run on the same data is measured for comparison.
"""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.errors import UserError
from pwiser_jax.inference.evaluate import evaluate_run
from pwiser_jax.metrics import auc
from pwiser_jax.options import Parser
from pwiser_jax.schema import Schema
from pwiser_jax.tasks import joint_task

STRENGTHS = (0.001, 0.01, 0.1, 1.0)


def one_hot(rows: Rows, schema: Schema) -> sparse.csr_matrix:
    """f32[N, sum of field rows + numericals]."""
    sizes = [field.rows for field in schema.categorical]
    offsets = np.cumsum([0, *sizes[:-1]])
    count, fields = rows.categorical.shape
    columns = (rows.categorical + offsets[None, :]).ravel()
    starts = np.arange(0, count * fields + 1, fields)
    ones = np.ones(count * fields, np.float32)
    ids = sparse.csr_matrix((ones, columns, starts), shape=(count, sum(sizes)))
    return sparse.csr_matrix(sparse.hstack([ids, sparse.csr_matrix(rows.numerical)]))


def logistic_aucs(data: Path, split: str = "valid") -> dict[str, dict[str, float]]:
    """AUC by joint task of a regression for each strength, and of the best by task."""
    prepared = Prepared(data)
    schema = prepared.schema
    if schema.multi_valued:
        raise UserError(
            f"{data} has multi-valued fields ({schema.multi_valued[0].name}), which "
            "one-hot regression does not read; prepare it with single-valued ones alone"
        )
    train, valid = prepared.load("train"), prepared.load("valid")
    x, x_valid = one_hot(train, schema), one_hot(valid, schema)
    measured = valid if split == "valid" else prepared.load(split)
    x_measured = x_valid if split == "valid" else one_hot(measured, schema)
    aucs: dict[str, dict[str, float]] = {f"C={c:g}": {} for c in STRENGTHS}
    aucs["C chosen on validation, by task"] = {}
    for rung in range(1, len(schema.labels) + 1):
        name = joint_task(schema.labels, rung).name
        column = rung - 1
        best = -1.0
        for strength in STRENGTHS:
            fit = _fit(x, train.labels[:, column], strength)
            value = auc(measured.labels[:, column], fit.decision_function(x_measured))
            aucs[f"C={strength:g}"][name] = value
            chosen = auc(valid.labels[:, column], fit.decision_function(x_valid))
            if chosen > best:
                best = chosen
                aucs["C chosen on validation, by task"][name] = value
    return aucs


def _fit(x: Any, y: np.ndarray, strength: float) -> LogisticRegression:
    with warnings.catch_warnings():
        # 300 iterations are enough for the AUC, but not for all digits of the weights.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=300).fit(x, y)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="experiments.logistic", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a prepared folder")
    parser.add_argument("--run", type=Path | None, help="a run to measure beside it")
    parser.add_argument("--split", choices=["valid", "test"], default="valid")
    options = parser.parse(argv)
    try:
        aucs = logistic_aucs(options.data, options.split)
        aucs = {f"logistic regression, {name}": values for name, values in aucs.items()}
        if options.run is not None:
            report = evaluate_run(options.run, options.split, data=options.data)
            tasks = next(iter(aucs.values()))
            values = {name: report.tasks[name].auc.value for name in tasks}
            aucs[options.run.name] = values
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    for name, values in aucs.items():
        texts = [f"{task.upper()} {value:.4f}" for task, value in values.items()]
        print(f"{name}: {', '.join(texts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
