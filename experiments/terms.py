"""Which part of the loss does it?

    python -m experiments.all --only terms --output runs/experiments

Each term is left out in turn; the loss stands on one head alone; it compares
probabilities or logits, with either gate, normalisation and surrogate; conversions come
from a bank, or into every batch. MMoE, lambda 0.1 unless said otherwise.
"""

import polars as pl

from experiments.lib.study import Experiment, Finding, Study
from experiments.lib.words import average_difference, listed, text_of
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import differences
from pwiser_jax.reports.tables import formatted, significance, summary

NAME = "terms"
MODEL = "mmoe"
VARIANTS = {
    "pwiser": "both terms on both heads",
    "without_click_only": "conversions against rows without a click only",
    "without_no_click": "conversions against click-only rows only",
    "ctr_only": "on the CTR head only",
    "ctcvr_only": "on the CTCVR head only",
    "bce_on_conversions": "the cross-entropy sees conversions only",
    "logit": "compares logits, margins 0.5 and 1.0",
    "logistic": "logits and the logistic surrogate",
    "literal_gate": "pairs count where s_c - s < -m",
    "per_negative": "terms divided by their negatives, not their pairs",
    "plain_sums": "terms not divided, lambda 1e-5",
    "bank": "64 earlier conversions remembered",
    "bce_conversion_aware": "BCE, at least 8 conversions a batch",
    "conversion_aware": "PWiseR, at least 8 conversions a batch",
}


def find(study: Study) -> Finding:
    variants = list(VARIANTS)[: study.scale.variants]
    losses = ["bce", *variants]
    parts = []
    for dataset in study.core:
        cells = study.cells(dataset, [MODEL], losses, study.scale.seeds)
        parts.append(study.run(NAME, cells, dataset))
    results = pl.concat(parts)
    table = summary(results)
    meanings = pl.DataFrame(
        [(name, VARIANTS[name]) for name in variants],
        schema=["Loss", "What it is"],
        orient="row",
    )
    blocks: list[TableBlock | Picture] = [TableBlock(meanings, "The variants")]
    for dataset in study.core:
        own = table.filter(pl.col("dataset") == dataset.name)
        # One row a variant: the plot's rows are models.
        shown = own.filter(pl.col("low").is_not_null()).with_columns(
            pl.col("loss").alias("model"), pl.lit("variant").alias("loss")
        )
        if shown.height:
            blocks.append(
                Picture(
                    differences(shown),
                    f"Paired differences of AUC to BCE by variant, {dataset.name}.",
                    f"{dataset.name}, MMoE, {study.split} rows.",
                )
            )
    blocks.append(TableBlock(formatted(table), f"AUC on {study.split}", folded=True))
    tests = significance(results)
    if tests.height:
        blocks.append(TableBlock(tests, "Tests of the differences", folded=True))
    return Finding(_answer(results, variants), blocks)


def _answer(results: pl.DataFrame, variants: list[str]) -> str:
    names = {
        "pwiser": "whole",
        "without_click_only": "without the click-only term",
        "without_no_click": "without the no-click term",
        "ctr_only": "on the CTR head only",
        "ctcvr_only": "on the CTCVR head only",
        "bce_on_conversions": "with BCE on conversions only",
    }
    means = [
        f"{text} {text_of(average_difference(results, 'ctcvr', loss))}"
        for loss, text in names.items()
        if loss in variants
    ]
    answer = f"CTCVR AUC less that of BCE, MMoE, mean over datasets: {listed(means)}."
    others = [loss for loss in variants if loss not in names]
    if others:
        values = {k: average_difference(results, "ctcvr", k) for k in others}
        best = max(values, key=lambda name: values[name].value)
        cost = text_of(average_difference(results, "ctr", best))
        answer += (
            f" The best other form, chosen after looking, is {best} with "
            f"{text_of(values[best])}, and {cost} in CTR."
        )
    return answer


TERMS = Experiment(
    NAME,
    "Terms, heads and forms",
    "What remains of PWiseR's effect without either term, without the cross-entropy "
    "on most rows, on one head alone, on logits, with other gates, normalisations and "
    "surrogates, and with conversions from a bank or in every batch?",
    find,
)
