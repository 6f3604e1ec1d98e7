"""MTReclib's four models in NumPy float64, from a state dict, and random state dicts.

Uses only the sizes of the library. Tasks are integers here.
"""

import numpy as np


def random_state(config, schema, seed=1):
    """Every name and shape of the layout, float32; no statistic is 0 or 1."""
    random = np.random.default_rng(seed)
    state, dim, tasks = {}, config.embedding_dim, range(len(schema.labels))
    ids = sum(field.size for field in schema.categorical)
    width = dim * (len(schema.categorical) + bool(schema.numerical))

    def normal(name, *shape, mean=0.0):
        state[name] = random.normal(mean, 0.6, shape).astype(np.float32)

    def linear(name, inputs, outputs):
        normal(f"{name}.weight", outputs, inputs)
        normal(f"{name}.bias", outputs)

    def mlp(name, inputs, hidden):
        for i, outputs in enumerate(hidden):
            norm = f"{name}.mlp.{4 * i + 1}"
            linear(f"{name}.mlp.{4 * i}", inputs, outputs)
            # Most ReLUs open: logits that hardly move would hide a wrong order.
            normal(f"{norm}.weight", outputs, mean=1.0)
            normal(f"{norm}.bias", outputs, mean=2.0)
            normal(f"{norm}.running_mean", outputs)
            var = random.uniform(0.5, 2, outputs)
            state[f"{norm}.running_var"] = var.astype(np.float32)
            state[f"{norm}.num_batches_tracked"] = np.array(7)
            inputs = outputs
        return inputs

    for part in [f".{t}" for t in tasks] if config.name == "single_task" else [""]:
        if schema.categorical:
            normal(f"embedding{part}.embedding.weight", ids, dim)
        if schema.numerical:
            linear(f"numerical_layer{part}", len(schema.numerical), dim)
    if config.name == "single_task":
        for t in tasks:
            tower_input = mlp(f"bottom.{t}", width, config.bottom)
    elif config.name == "shared_bottom":
        tower_input = mlp("bottom", width, config.bottom)
    elif config.name == "mmoe":
        for e in range(config.experts):
            tower_input = mlp(f"expert.{e}", width, config.expert)
        for t in tasks:
            linear(f"gate.{t}.0", width, config.experts)
    else:
        of_task, shared = config.task_experts, config.shared_experts
        for level, hidden in enumerate(config.levels):
            for t in tasks:
                for e in range(of_task):
                    mlp(f"task_experts.{level}.{t}.{e}", width, hidden)
                linear(f"task_gates.{level}.{t}.0", width, of_task + shared)
            linear(f"share_gates.{level}.0", width, len(tasks) * of_task + shared)
            for e in range(shared):
                tower_input = mlp(f"share_experts.{level}.{e}", width, hidden)
            width = tower_input
    for t in tasks:
        last = f"tower.{t}.mlp.{4 * len(config.tower)}"
        linear(last, mlp(f"tower.{t}", tower_input, config.tower), 1)
    return state


class NumpyMtreclib:
    """Logits in evaluation mode from the arrays of a state dict."""

    def __init__(self, config, schema, state):
        self.config, self.schema = config, schema
        self.state = {name: x.astype(np.float64) for name, x in state.items()}

    def logits(self, inputs):
        """One array [B] a task."""
        z = {
            "single_task": self.single_task,
            "shared_bottom": self.shared_bottom,
            "mmoe": self.mmoe,
            "ple": self.ple,
        }[self.config.name](inputs)
        towers = [self.mlp(f"tower.{t}", self.config.tower, x) for t, x in enumerate(z)]
        last = f"mlp.{4 * len(self.config.tower)}"
        return [self.linear(f"tower.{t}.{last}", x)[:, 0] for t, x in enumerate(towers)]

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def mlp(self, name, hidden, x):
        for i in range(len(hidden)):
            x = self.linear(f"{name}.mlp.{4 * i}", x)
            weight, bias, mean, var = (
                self.state[f"{name}.mlp.{4 * i + 1}.{leaf}"]
                for leaf in ("weight", "bias", "running_mean", "running_var")
            )
            x = np.maximum((x - mean) / np.sqrt(var + 1e-5) * weight + bias, 0)
        return x

    def embedding(self, inputs, part=""):
        fields, start = [], 0
        for column, field in enumerate(self.schema.categorical):
            table = self.state[f"embedding{part}.embedding.weight"]
            fields.append(table[start + inputs["categorical"][:, column]])
            start += field.size
        if self.schema.numerical:
            numbers = inputs["numerical"].astype(np.float64)
            fields.append(self.linear(f"numerical_layer{part}", numbers))
        return np.concatenate(fields, axis=1)

    def mixture(self, gate, x, experts):
        weights = np.exp(self.linear(gate, x))
        weights /= weights.sum(axis=1, keepdims=True)
        return np.einsum("be,ebd->bd", weights, np.stack(experts))

    @property
    def tasks(self):
        return range(len(self.schema.labels))

    def single_task(self, inputs):
        hidden = self.config.bottom
        return [
            self.mlp(f"bottom.{t}", hidden, self.embedding(inputs, f".{t}"))
            for t in self.tasks
        ]

    def shared_bottom(self, inputs):
        x = self.mlp("bottom", self.config.bottom, self.embedding(inputs))
        return [x] * len(self.tasks)

    def mmoe(self, inputs):
        x, count = self.embedding(inputs), self.config.experts
        experts = [self.mlp(f"expert.{e}", self.config.expert, x) for e in range(count)]
        return [self.mixture(f"gate.{t}.0", x, experts) for t in self.tasks]

    def ple(self, inputs):
        """Task t's gate: its own experts, then the shared; the shared gate: all."""
        shared_x = self.embedding(inputs)
        task_x = [shared_x] * len(self.tasks)
        for level, hidden in enumerate(self.config.levels):
            shared = [
                self.mlp(f"share_experts.{level}.{e}", hidden, shared_x)
                for e in range(self.config.shared_experts)
            ]
            of_task = [
                [
                    self.mlp(f"task_experts.{level}.{t}.{e}", hidden, task_x[t])
                    for e in range(self.config.task_experts)
                ]
                for t in self.tasks
            ]
            task_x = [
                self.mixture(
                    f"task_gates.{level}.{t}.0", task_x[t], of_task[t] + shared
                )
                for t in self.tasks
            ]
            if level < len(self.config.levels) - 1:
                gate = f"share_gates.{level}.0"
                every = [output for outputs in of_task for output in outputs]
                shared_x = self.mixture(gate, shared_x, every + shared)
        return task_x
