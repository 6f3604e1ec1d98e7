"""The first lines of a run or a sweep: its sizes, and warnings about them."""

from collections.abc import Sequence

from pwiser_jax.config import Config
from pwiser_jax.data.prepared.manifest import Manifest
from pwiser_jax.training.run.protocol import LEARNED

# Warn of fewer steps per epoch, or a smaller share of batches with a conversion.
FEW_STEPS = 20
RARE_BATCHES = 0.5


def header(
    configs: Sequence[Config],
    manifest: Manifest,
    steps: int,
    parameters: int,
    devices: str,
) -> str:
    """One line: rows by split, steps per epoch, parameters, batch, devices, ranking.

    Args:
        configs: configurations of the runs that train together.
        manifest: manifest of the prepared folder.
        steps: steps per epoch.
        parameters: number of parameters of one run's model.
        devices: description of the devices, such as "2 cpu devices".
    """
    config, count = configs[0], len(configs)
    rows = ", ".join(f"{name} {s.rows:,}" for name, s in manifest.splits.items())
    runs = f"{count} runs of " if count > 1 else ""
    rankings = " or ".join(dict.fromkeys(ranked(config) for config in configs))
    return (
        f"rows: {rows}; {steps:,} steps an epoch of {config.data.batch_size:,} rows; "
        f"{runs}{config.model.name}, {parameters:,} parameters; {devices}; {rankings}"
    )


def ranked(config: Config) -> str:
    """The ranking loss and its lambda: "pwiser, lambda 0.1", or "no ranking"."""
    lambdas = config.loss.resolved_lambdas
    if config.loss.ranking == "none":
        return "no ranking"
    if isinstance(lambdas, dict):
        shown = ", ".join(f"{name} {value:g}" for name, value in lambdas.items())
        return f"{config.loss.ranking}, lambdas {shown}"
    return f"{config.loss.ranking}, lambda {lambdas:g}"


def cautions(config: Config, manifest: Manifest, steps: int) -> list[str]:
    """Sentences on data that are small for the batch or a schedule, if they are.

    A batch of B out of N rows with C conversions has none with probability about
    (1-C/N)^B.
    """
    lines = []
    if steps < FEW_STEPS:
        lines.append(
            f"only {steps} steps an epoch: the model may learn little; a smaller "
            "data.batch_size makes more"
        )
    total = steps * config.train.epochs
    ramps = {
        "optimizer.warmup_steps": config.optimizer.warmup_steps,
        "loss.lambda_ramp_steps": config.loss.lambda_ramp_steps,
        "loss.margin_ramp_steps": config.loss.margin_ramp_steps,
    }
    lines += [
        f"{name} is {ramp:,}, and train.epochs has {total:,} steps: the ramp never ends"
        for name, ramp in ramps.items()
        if ramp > total
    ]
    splits = [manifest.splits[name] for name in LEARNED[config.protocol]]
    rows = sum(split.rows for split in splits)
    conversions = sum(list(split.labels.values())[-1] for split in splits)
    share = 1 - (1 - conversions / max(rows, 1)) ** config.data.batch_size
    pairs = config.loss.ranking != "none" and not config.data.min_conversions
    if pairs and share < RARE_BATCHES:
        lines.append(
            f"{share:.0%} of batches are expected to hold a conversion, and only those "
            "rank; data.min_conversions or a larger data.batch_size helps"
        )
    return lines
