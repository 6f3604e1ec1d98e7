"""What a run says before its first step: its sizes, and what may go wrong with them."""

from pwiser_jax.config import Config
from pwiser_jax.data.prepared.manifest import Manifest
from pwiser_jax.training.run.protocol import LEARNED

FEW_STEPS = 20
RARE_BATCHES = 0.5


def header(config: Config, manifest: Manifest, parameters: int, devices: str) -> str:
    """One line: rows by split, steps an epoch, parameters, batch, devices, ranking.

    Args:
        config: the run's configuration.
        manifest: of the prepared folder.
        parameters: the model's number of parameters.
        devices: what trains, such as "2 cpu devices".
    """
    rows = ", ".join(f"{name} {s.rows:,}" for name, s in manifest.splits.items())
    steps = steps_an_epoch(config, manifest)
    return (
        f"rows: {rows}; {steps:,} steps an epoch of {config.data.batch_size:,} rows; "
        f"{config.model.name}, {parameters:,} parameters; {devices}; {ranked(config)}"
    )


def ranked(config: Config) -> str:
    """What is ranked: "pwiser, lambda 0.1", or "no ranking"."""
    lambdas = config.loss.resolved_lambdas
    if config.loss.ranking == "none":
        return "no ranking"
    if isinstance(lambdas, dict):
        shown = ", ".join(f"{name} {value:g}" for name, value in lambdas.items())
        return f"{config.loss.ranking}, lambdas {shown}"
    return f"{config.loss.ranking}, lambda {lambdas:g}"


def cautions(config: Config, manifest: Manifest) -> list[str]:
    """Sentences on data that are small for the batch, if they are.

    A batch of B of N rows with C conversions holds none with probability
    (1 - C/N)^B, nearly.
    """
    lines = []
    steps = steps_an_epoch(config, manifest)
    if steps < FEW_STEPS:
        lines.append(
            f"only {steps} steps an epoch: the model may learn little; a smaller "
            "data.batch_size makes more"
        )
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


def steps_an_epoch(config: Config, manifest: Manifest) -> int:
    """Training steps that see each row once."""
    rows = sum(manifest.splits[name].rows for name in LEARNED[config.protocol])
    return -(-rows // config.data.batch_size)
