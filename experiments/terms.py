"""Which part of the loss causes its effect?

    python -m experiments.all --only terms --output runs/experiments

Each term is removed in turn; the loss is applied to one head only; it compares
probabilities or logits, with other gates, normalisations and surrogates; conversions
come from a bank, or are added to every batch. MMoE, lambda 0.1 unless stated.
"""

import polars as pl

from experiments.lib.study import Experiment, Finding, Study
from experiments.lib.words import (
    after_holm,
    average_difference,
    changes,
    effects_table,
    text_of,
)
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import differences
from pwiser_jax.reports.tables import formatted, significance, summary, tests_table

NAME = "terms"
MODEL = "mmoe"
VARIANTS = {
    "pwiser": "both terms on both heads",
    "without_click_only": "conversions against rows without a click only",
    "without_no_click": "conversions against click-only rows only",
    "ctr_only": "on the CTR head only",
    "ctcvr_only": "on the CTCVR head only",
    "bce_on_conversions": "cross-entropy of conversions only",
    "logit": "compares logits, margins 0.5 and 1.0",
    "logistic": "logits and the logistic surrogate",
    "literal_gate": "pairs are active where s_c - s < -m",
    "per_negative": "terms divided by their negatives, not their pairs",
    "plain_sums": "terms not divided, lambda 1e-5",
    "bank": "64 earlier conversions as further positives",
    "bce_conversion_aware": "BCE, at least 8 conversions a batch",
    "conversion_aware": "PWiseR, at least 8 conversions a batch",
}


def find(study: Study) -> Finding:
    variants = list(VARIANTS)[: study.scale.variants]
    losses = ["bce", *variants]
    results = pl.concat(
        study.run(
            NAME, study.grid(dataset, [MODEL], losses, study.scale.seeds), dataset
        )
        for dataset in study.core
    )
    table = summary(results)
    means = effects_table(results, [(loss, "bce") for loss in variants])
    meanings = pl.Series("What it is", [VARIANTS[name] for name in variants])
    caption = "AUC minus that of BCE, mean over datasets, 95% intervals over seeds"
    blocks: list[TableBlock | Picture] = [
        TableBlock(means.insert_column(1, meanings), caption)
    ]
    for dataset in study.core:
        shown = table.filter(
            (pl.col("dataset") == dataset.title) & pl.col("low").is_not_null()
        )
        if shown.height:
            blocks.append(
                Picture(
                    differences(shown, rows=("loss",)),
                    f"Paired differences of AUC to BCE by variant, {dataset.title}.",
                    f"{dataset.title}, MMoE, {study.split} rows.",
                )
            )
    blocks.append(TableBlock(formatted(table), f"AUC on {study.split}", folded=True))
    tests = significance(results)
    if tests.height:
        caption = f"Tests of the differences: {after_holm(tests)}"
        blocks.append(TableBlock(tests_table(tests), caption, folded=True))
    return Finding(_answer(results, variants), blocks)


def _answer(results: pl.DataFrame, variants: list[str]) -> str:
    gaps = {loss: average_difference(results, "ctcvr", loss) for loss in variants}
    best = max(gaps, key=lambda loss: gaps[loss].value)
    answer = f"Against BCE, PWiseR {changes(results, ['ctcvr'])}"
    if best == "pwiser":
        return f"{answer}, more than any of its other forms (MMoE)."
    return (
        f"{answer}; of its other forms {best}, chosen after looking, gains most in "
        f"CTCVR AUC ({text_of(gaps[best])}) and {changes(results, ['ctr'], best)} "
        "(MMoE)."
    )


EXPERIMENT = Experiment(
    NAME,
    "Terms, heads and forms",
    "How much of PWiseR's effect remains without either term, without the "
    "cross-entropy of most rows, on one head only, on logits, with other gates, "
    "normalisations and surrogates, and with conversions from a bank or in each batch?",
    find,
)
