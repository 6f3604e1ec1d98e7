"""The four models as plain PyTorch modules, with MTReclib's names of parameters."""

from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

nn = torch.nn


class Embedding(nn.Module):
    def __init__(self, schema, dim, sparse):
        super().__init__()
        sizes = [field.size for field in schema.categorical]
        self.embedding = nn.Embedding(sum(sizes), dim, sparse=sparse)
        offsets = torch.tensor(np.cumsum([0, *sizes[:-1]]))
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, ids):
        return self.embedding(ids + self.offsets).flatten(1)


class Mlp(nn.Module):
    def __init__(self, inputs, hidden, *last):
        super().__init__()
        layers = []
        for width in hidden:
            block = nn.Linear(inputs, width), nn.BatchNorm1d(width)
            layers += [*block, nn.ReLU(), nn.Dropout(0.2)]
            inputs = width
        self.mlp = nn.Sequential(*layers, *(nn.Linear(inputs, width) for width in last))

    def forward(self, x):
        return self.mlp(x)


def mlps(count, inputs, hidden, *last):
    return nn.ModuleList(Mlp(inputs, hidden, *last) for _ in range(count))


def gate(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, outputs), nn.Softmax(dim=1))


def gates(count, inputs, outputs):
    return nn.ModuleList(gate(inputs, outputs) for _ in range(count))


def embed(table, layer, ids, numbers):
    fields = table(ids)
    return fields if layer is None else torch.cat([fields, layer(numbers)], dim=1)


def mixture(weights, outputs):
    return torch.bmm(weights.unsqueeze(1), torch.stack(outputs, dim=1)).squeeze(1)


class TorchModel(nn.Module):
    """Logits [B] of each task; subclasses define the layers below the towers.

    `sparse`: the tables' gradients are of the rows looked up, for SparseAdam.
    """

    def __init__(self, config, schema, sparse=False):
        super().__init__()
        self.tasks, self.sparse = len(schema.labels), sparse
        fields = len(schema.categorical) + bool(schema.numerical)
        self.embedding, self.numerical_layer = self.inputs(config, schema)
        width = self.build(config, schema, config.embedding_dim * fields)
        self.tower = mlps(self.tasks, width, config.tower, 1)

    def inputs(self, config, schema) -> Any:
        """A table of all fields, and the layer of the numerical columns, if any."""
        dim, columns = config.embedding_dim, len(schema.numerical)
        layer = nn.Linear(columns, dim) if columns else None
        return Embedding(schema, dim, self.sparse), layer

    def embed(self, ids, numbers):
        return embed(self.embedding, self.numerical_layer, ids, numbers)

    def forward(self, ids, numbers):
        features = zip(self.tower, self.features(ids, numbers), strict=True)
        return [tower(x)[:, 0] for tower, x in features]


class SingleTask(TorchModel):
    def inputs(self, config, schema) -> Any:
        pairs = [TorchModel.inputs(self, config, schema) for _ in range(self.tasks)]
        return map(nn.ModuleList, zip(*pairs, strict=True))

    def build(self, config, schema, width):
        self.bottom = mlps(self.tasks, width, config.bottom)
        return config.bottom[-1]

    def features(self, ids, numbers):
        layers = zip(self.embedding, self.numerical_layer, self.bottom, strict=True)
        return [
            bottom(embed(table, layer, ids, numbers)) for table, layer, bottom in layers
        ]


class SharedBottom(TorchModel):
    def build(self, config, schema, width):
        self.bottom = Mlp(width, config.bottom)
        return config.bottom[-1]

    def features(self, ids, numbers):
        return [self.bottom(self.embed(ids, numbers))] * self.tasks


class MMoE(TorchModel):
    def build(self, config, schema, width):
        self.expert = mlps(config.experts, width, config.expert)
        self.gate = gates(self.tasks, width, config.experts)
        return config.expert[-1]

    def features(self, ids, numbers):
        x = self.embed(ids, numbers)
        outputs = [expert(x) for expert in self.expert]
        return [mixture(gate(x), outputs) for gate in self.gate]


class PLE(TorchModel):
    def build(self, config, schema, width):
        tasks, per_task, shared = self.tasks, config.task_experts, config.shared_experts
        levels = []
        for hidden in config.levels:
            levels.append(
                (
                    nn.ModuleList(mlps(per_task, width, hidden) for _ in range(tasks)),
                    mlps(shared, width, hidden),
                    gates(tasks, width, per_task + shared),
                    gate(width, tasks * per_task + shared),
                )
            )
            width = hidden[-1]
        parts = map(nn.ModuleList, zip(*levels, strict=True))
        self.task_experts, self.share_experts, self.task_gates, self.share_gates = parts
        return width

    def features(self, ids, numbers):
        *tasks, shared = [self.embed(ids, numbers)] * (self.tasks + 1)
        parts = self.task_experts, self.share_experts, self.task_gates, self.share_gates
        for task_experts, share_experts, task_gates, share_gate in zip(
            *parts, strict=True
        ):
            of_all = [expert(shared) for expert in share_experts]
            every = []
            for t in range(self.tasks):
                outputs = [expert(tasks[t]) for expert in task_experts[t]]
                every += outputs
                tasks[t] = mixture(task_gates[t](tasks[t]), outputs + of_all)
            # The last level's is computed but not used.
            shared = mixture(share_gate(shared), every + of_all)
        return tasks


MODELS = {
    "single_task": SingleTask,
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "ple": PLE,
}
