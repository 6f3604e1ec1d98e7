"""One epoch of a plain PyTorch network, from a CSV file to AUCs, as MTReclib's script.

    python -m experiments.bench.plain.torch_epoch '{"model": "mmoe", ...}'

pandas reads the files, a `DataLoader` with four workers collates batches row by row,
scikit-learn computes the AUCs, which are printed. It needs torch, pandas and
scikit-learn, and loads no jax.
"""

import json
import sys
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from sklearn.metrics import roc_auc_score

from experiments.bench.plain.plain_torch import MODELS

WORKERS = 4

pd: Any = import_module("pandas")


class CsvRows(torch.utils.data.Dataset):
    """Rows of search_id, the categorical and numerical columns, click, conversion."""

    def __init__(self, path: str, fields: int) -> None:
        values = pd.read_csv(path).to_numpy()[:, 1:]
        self.ids = values[:, :fields].astype(np.int64)
        self.numbers = values[:, fields:-2].astype(np.float32)
        self.labels = values[:, -2:].astype(np.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        return self.ids[index], self.numbers[index], self.labels[index]


def main(task: dict[str, Any]) -> list[float]:
    """Trains for one epoch; returns the AUC of each task on the validation rows.

    Args:
        task: "model", its name; "config", its sizes; "sizes", ids of each field;
            "train" and "valid", CSV files; "batch_size"; "learning_rate"; "l2".
    """
    torch.manual_seed(0)
    sizes = task["sizes"]
    train, valid = (CsvRows(task[name], len(sizes)) for name in ("train", "valid"))
    schema = SimpleNamespace(
        categorical=[SimpleNamespace(size=size) for size in sizes],
        numerical=range(train.numbers.shape[1]),
        labels=("click", "conversion"),
    )
    network = MODELS[task["model"]](SimpleNamespace(**task["config"]), schema)
    optimizer = torch.optim.Adam(
        network.parameters(), task["learning_rate"], weight_decay=task["l2"]
    )
    bce = torch.nn.BCEWithLogitsLoss()

    def loader(rows: CsvRows, shuffle: bool) -> Any:
        size, load = task["batch_size"], torch.utils.data.DataLoader
        return load(rows, batch_size=size, num_workers=WORKERS, shuffle=shuffle)

    network.train()
    for ids, numbers, labels in loader(train, True):
        logits = network(ids, numbers)
        losses = [bce(z, labels[:, k]) for k, z in enumerate(logits)]
        network.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        scores = [
            torch.stack(network(ids, numbers), dim=1).numpy()
            for ids, numbers, _ in loader(valid, False)
        ]
    columns = zip(valid.labels.T, np.concatenate(scores).T, strict=True)
    return [float(roc_auc_score(labels, score)) for labels, score in columns]


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
