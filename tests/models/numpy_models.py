"""The four models in NumPy float64, written from the papers' equations.

One expert, one task and one field at a time, without any of the library's code; only
the names of parameters are the library's. `variables` are nested dicts of arrays.
"""

import numpy as np

EPSILON, MOMENTUM = 1e-5, 0.9


def float64(tree):
    if isinstance(tree, dict):
        return {name: float64(leaf) for name, leaf in tree.items()}
    return np.array(tree, np.float64)


class NumpyModel:
    """Logits by name of a model without dropout; `stats` then holds the new ones."""

    def __init__(self, config, schema, variables, train):
        self.config, self.schema, self.train = config, schema, train
        self.params = float64(variables["params"])
        self.stats = float64(variables["batch_stats"])

    def logits(self, inputs, head_names):
        batch = {name: np.asarray(x, np.float64) for name, x in inputs.items()}
        z = getattr(self, self.config.name)(batch, head_names)
        logits = {name: self.tower(t, z[name]) for t, name in enumerate(head_names)}
        if self.config.wide:
            weights = self.embedding("wide", batch, len(head_names))
            weights = weights.reshape(len(weights), -1, len(head_names)).sum(1)
            for t, name in enumerate(head_names):
                logits[name] = logits[name] + weights[:, t]
        return logits

    # Layers

    def at(self, path):
        params, stats = self.params, self.stats
        for name in path:
            params, stats = params[name], stats.get(name, {})
        return params, stats

    def linear(self, path, x, expert=...):
        params, _ = self.at(path)
        return x @ params["kernel"][expert] + params["bias"][expert]

    def batch_norm(self, path, x, expert=...):
        params, stats = self.at(path)
        mean, var = stats["mean"][expert], stats["var"][expert]
        if self.train:
            stats["mean"][expert] = MOMENTUM * mean + 0.1 * x.mean(0)
            stats["var"][expert] = MOMENTUM * var + 0.1 * x.var(0, ddof=1)
            mean, var = x.mean(0), x.var(0)
        normal = (x - mean) / np.sqrt(var + EPSILON)
        return normal * params["scale"][expert] + params["bias"][expert]

    def hidden(self, path, widths, x, expert=...):
        for i in range(len(widths)):
            x = self.linear([*path, f"layer_{i}"], x, expert)
            x = np.maximum(self.batch_norm([*path, f"norm_{i}"], x, expert), 0)
        return x

    def tower(self, t, x):
        x = self.hidden(["towers", "hidden"], self.config.tower, x, t)
        return self.linear(["towers", "out"], x, t)[:, 0]

    def embedding(self, name, batch, dim=None):
        fields, limit = [], self.config.small_rows
        limit = self.config.embedding_dim if limit is None else limit
        start = {"small": 0, "large": 0}
        for i, field in enumerate(self.schema.categorical):
            table = "small" if field.size + 3 <= limit else "large"
            ids = batch["categorical"][:, i].astype(int)
            fields.append(self.params[name][table][start[table] + ids])
            start[table] += field.size + 3
        column = 0
        for field in self.schema.multi_valued:
            dim = dim or self.config.embedding_dim
            pooled = np.zeros((len(batch["categorical"]), dim))
            for row, (ids, weights) in enumerate(
                zip(batch["multi_ids"], batch["multi_weights"], strict=True)
            ):
                for j in range(column, column + field.width):
                    vector = self.params[name]["large"][start["large"] + int(ids[j])]
                    pooled[row] += weights[j] * vector
                whole = weights[column : column + field.width].sum()
                if field.pool == "mean" and whole:
                    pooled[row] /= whole
            fields.append(pooled)
            column += field.width
            start["large"] += field.size + 3
        if self.schema.numerical:
            fields.append(self.linear([name, "numerical"], batch["numerical"]))
        return np.concatenate(fields, axis=1)

    def mixture(self, gate_path, x, experts, gate=...):
        scores = np.exp(self.linear(gate_path, x, gate))
        weights = scores / scores.sum(1, keepdims=True)
        assert weights.shape[1] == len(experts)
        return sum(weights[:, [e]] * out for e, out in enumerate(experts))

    # Models

    def single_task(self, batch, heads):
        return {
            head: self.hidden(
                [f"bottom_{head}"],
                self.config.bottom,
                self.embedding(f"embedding_{head}", batch),
            )
            for head in heads
        }

    def shared_bottom(self, batch, heads):
        x = self.embedding("embedding", batch)
        return dict.fromkeys(heads, self.hidden(["bottom"], self.config.bottom, x))

    def mmoe(self, batch, heads):
        x = self.embedding("embedding", batch)
        experts = [
            self.hidden(["experts"], self.config.expert, x, e)
            for e in range(self.config.experts)
        ]
        return {
            head: self.mixture(["gates"], x, experts, t) for t, head in enumerate(heads)
        }

    def ple(self, batch, heads):
        config = self.config
        g = dict.fromkeys([*heads, None], self.embedding("embedding", batch))
        for j, widths in enumerate(config.levels):
            level, new, of_all_tasks = f"level_{j}", {}, []
            shared = [
                self.hidden([level, "shared_experts"], widths, g[None], e)
                for e in range(config.shared_experts)
            ]
            for head in heads:
                of_task = [
                    self.hidden([level, f"experts_{head}"], widths, g[head], e)
                    for e in range(config.task_experts)
                ]
                gate = [level, f"gate_{head}"]
                new[head] = self.mixture(gate, g[head], of_task + shared)
                of_all_tasks += of_task
            if j < len(config.levels) - 1:
                gate = [level, "shared_gate"]
                new[None] = self.mixture(gate, g[None], of_all_tasks + shared)
            g = new
        return g

    def aitm(self, batch, heads):
        """Equations 2 to 6 of the paper, a row at a time for the attention."""
        x = self.embedding("embedding", batch)
        q = [
            self.hidden(["bottoms"], self.config.bottom, x, t)
            for t in range(len(heads))
        ]
        z = {heads[0]: q[0]}
        for t in range(1, len(heads)):
            head, before = heads[t], z[heads[t - 1]]
            p = self.hidden([f"info_{head}"], self.config.bottom[-1:], before)
            rows = []
            for u in zip(q[t], p, strict=True):
                h1, h2, h3 = (
                    [self.linear([f"transfer_{head}"], v, i) for v in u]
                    for i in range(3)
                )
                scores = [a @ b / np.sqrt(len(a)) for a, b in zip(h2, h3, strict=True)]
                weights = np.exp(scores) / np.exp(scores).sum()
                rows.append(weights[0] * h1[0] + weights[1] * h1[1])
            z[head] = np.stack(rows)
        return z


def logit(p):
    return np.log(p) - np.log1p(-p)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))
