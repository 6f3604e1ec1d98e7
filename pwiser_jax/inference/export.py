"""Exports a run's model as StableHLO: one file that needs only jax.

The file is a `jax.export.Exported` with the weights inside and a symbolic number of
rows; a JSON beside it documents inputs and outputs. Loading needs only jax and
flatbuffers:

    from jax import export
    exported = export.deserialize(bytearray(Path("scorer.bin").read_bytes()))
    probabilities = exported.call({"categorical": ids, "numerical": values})
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from pwiser_jax.atomic import write_whole
from pwiser_jax.errors import UserError
from pwiser_jax.evaluation import Logits
from pwiser_jax.inference.predict import Scorer
from pwiser_jax.models import build
from pwiser_jax.schema import Schema
from pwiser_jax.tasks import CvrSpace, joint_task, measured
from pwiser_jax.training.step import example_inputs

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    run: str | Path,
    output: str | Path,
    *,
    platforms: Sequence[str] = PLATFORMS,
    overwrite: bool = False,
) -> Path:
    """Writes the scorer of a run's best checkpoint, and `OUTPUT.json` beside it.

    Args:
        run: the run's folder.
        output: the file to write.
        platforms: platforms that the file runs on.
        overwrite: replace existing files.

    Returns:
        The path of the JSON that documents inputs and outputs.

    Raises:
        UserError: no such run, or a file exists or cannot be written.
    """
    run, output = Path(run), Path(output)
    about = output.with_name(f"{output.name}.json")
    for path in (output, about):
        if path.is_dir():
            raise UserError(f"{path} is a folder; --output names a file")
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists; --overwrite replaces it")
    if not output.parent.is_dir():
        raise UserError(f"{output.parent}: no such folder")
    if find_spec("flatbuffers") is None:
        raise UserError("export needs flatbuffers: pip install flatbuffers")
    scorer = Scorer(run)
    schema, space = scorer.schema, scorer.config.model.cvr_space
    module = build(scorer.config.model, schema)
    variables = jax.tree.map(
        jnp.asarray,
        {"params": scorer.state.params, "batch_stats": scorer.state.batch_stats},
    )

    def score(inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        logits: Any = module.apply(variables, inputs, train=False)
        return _probabilities(logits, schema.labels, space)

    (rows,) = jax_export.symbolic_shape("rows")
    shapes = {
        name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype)
        for name, array in example_inputs(schema).items()
    }
    exported = jax_export.export(jax.jit(score), platforms=tuple(platforms))(shapes)
    tree = _document(schema, scorer, platforms)
    try:
        write_whole(about, json.dumps(tree, indent=2) + "\n")
        partial = output.with_name(f".{output.name}.partial")
        partial.write_bytes(exported.serialize())
        partial.replace(output)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}") from None
    return about


def _probabilities(
    logits: Logits, labels: tuple[str, ...], space: CvrSpace
) -> dict[str, jax.Array]:
    """As `evaluation.probabilities`, in float32."""
    result = {}
    for task in measured(labels):
        if task.given == 0 or space != "ctcvr":
            result[task.name] = jax.nn.sigmoid(logits[task.name])
        else:
            upper = jax.nn.log_sigmoid(logits[joint_task(labels, task.rung).name])
            lower = jax.nn.log_sigmoid(logits[joint_task(labels, task.given).name])
            result[task.name] = jnp.exp(jnp.minimum(upper - lower, 0))
    return result


def _document(
    schema: Schema, scorer: Scorer, platforms: Sequence[str]
) -> dict[str, Any]:
    """The document for a server that calls the file: columns, ids and scales."""
    encoder = scorer.prepared.encoder
    inputs: dict[str, Any] = {
        name: {"shape": ["rows", *array.shape[1:]], "dtype": str(array.dtype)}
        for name, array in example_inputs(schema).items()
    }
    inputs["categorical"]["columns"] = [
        {
            "name": field.name,
            "values": "0 .. size - 1, in the order of vocabulary.parquet",
            "size": field.size,
            "missing": field.missing,
            "unseen": field.unseen,
            "rare": field.rare,
        }
        for field in schema.categorical
    ]
    inputs["numerical"]["columns"] = [
        {
            "name": field.name,
            "scaled": "(x - mean) / scale",
            "mean": field.mean,
            "scale": field.scale,
            "missing": float(np.float64(encoder.fill.get(field.name, field.mean))),
        }
        for field in schema.numerical
    ]
    if schema.multi_valued:
        inputs["multi_ids"]["fields"] = [
            {"name": field.name, "width": field.width, "pool": field.pool}
            for field in schema.multi_valued
        ]
    tasks = [task.name for task in measured(schema.labels)]
    return {
        "format": "jax.export, StableHLO",
        "jax": jax.__version__,
        "platforms": list(platforms),
        "inputs": inputs,
        "outputs": {
            name: {"shape": ["rows"], "dtype": "float32", "what": "probability"}
            for name in tasks
        },
        "vocabulary": "data/vocabulary.parquet of the run",
    }
