"""Summaries against SciPy, plots by their artists, the page by a parser."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from matplotlib.colors import to_hex
from rich.console import Console
from scipy import stats

from pwiser_jax.metrics import reliability
from pwiser_jax.reports import plots, tables
from pwiser_jax.reports.html import Picture, Report, Section, TableBlock, Verdict

LOSSES = ("bce", "pwiser", "pwiser_no_click_only_term")


@pytest.fixture(scope="module")
def results():
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        [
            {
                "dataset": "synthetic",
                "model": model,
                "loss": loss,
                "seed": seed,
                "task": task,
                "auc": 0.7 + 0.01 * seed + rng.normal(0, 0.002),
                "log_loss": 0.3 + rng.normal(0, 0.002),
                "run": f"{model}-{loss}-{seed}",
                "config_hash": "0a1b",
            }
            for seed in range(4)
            for model in ("mmoe", "ple")
            for loss in LOSSES
            for task in ("ctr", "ctcvr", "cvr")
        ]
    )


def of(results, model, loss, task):
    return results.filter(model=model, loss=loss, task=task).sort("seed")


@pytest.mark.parametrize("metric", ["auc", "log_loss"])
def test_summary_is_scipys_paired_t_test(results, metric):
    table = tables.summary(results, metric=metric)
    assert len(table) == 2 * 3 * 3
    for row in table.iter_rows(named=True):
        values = of(results, row["model"], row["loss"], row["task"])[metric].to_numpy()
        assert row["runs"] == 4
        assert row["seeds"] == "0 1 2 3"
        assert row["mean"] == pytest.approx(values.mean())
        assert row["sd"] == pytest.approx(np.std(values, ddof=1))
        if row["loss"] == "bce":
            assert (row["pairs"], row["difference"], row["low"]) == (0, None, None)
            continue
        base = of(results, row["model"], "bce", row["task"])[metric].to_numpy()
        expected = stats.ttest_rel(values, base).confidence_interval()
        assert row["pairs"] == 4
        assert row["difference"] == pytest.approx((values - base).mean())
        assert (row["low"], row["high"]) == pytest.approx(tuple(expected))


def test_summary_keeps_the_order_of_first_appearance(results):
    keys = tables.summary(results).select("model", "task", "loss").rows()
    assert keys == [
        (model, task, loss)
        for model in ("mmoe", "ple")
        for task in ("ctr", "ctcvr", "cvr")
        for loss in LOSSES
    ]


def test_rows_in_another_order_pair_the_same_seeds(results):
    moved = results.sample(fraction=1, shuffle=True, seed=1)
    key = ["model", "task", "loss"]
    one, other = (tables.summary(r).sort(key) for r in (results, moved))
    assert one.select(*key, "seeds").equals(other.select(*key, "seeds"))
    numbers = ["mean", "sd", "difference", "low", "high"]
    for name in numbers:
        assert one[name].to_list() == pytest.approx(other[name].to_list())


def test_only_seeds_of_both_losses_are_paired(results):
    """A killed experiment leaves seeds without a partner: no pairs out of step."""
    partial = results.filter(
        ~((pl.col("loss") == "bce") & (pl.col("seed") == 0))
        & ~((pl.col("loss") == "pwiser") & (pl.col("seed") == 3))
    )
    row = tables.summary(partial).row(
        by_predicate=(pl.col("model") == "ple")
        & (pl.col("task") == "ctr")
        & (pl.col("loss") == "pwiser"),
        named=True,
    )
    assert (row["runs"], row["pairs"], row["seeds"]) == (3, 2, "0 1 2")
    values, base = (
        of(results, "ple", loss, "ctr").filter(pl.col("seed").is_in([1, 2]))["auc"]
        for loss in ("pwiser", "bce")
    )
    assert row["difference"] == pytest.approx((values - base).mean())


def test_what_is_not_defined_is_null(results):
    one = results.filter(pl.col("seed") == 0).with_columns(
        auc=pl.when(pl.col("task") == "cvr").then(None).otherwise("auc")
    )
    table = tables.summary(one)
    row = table.filter(model="mmoe", task="ctr", loss="pwiser").row(0, named=True)
    assert row["difference"] is not None
    assert (row["runs"], row["sd"], row["low"], row["high"]) == (1, None, None, None)
    row = table.filter(model="mmoe", task="cvr", loss="pwiser").row(0, named=True)
    assert (row["runs"], row["mean"], row["difference"]) == (0, None, None)
    texts = tables.formatted(table)
    assert "None" not in tables.to_markdown(texts)
    assert "nan" not in tables.to_markdown(texts)
    without = tables.summary(results.filter(pl.col("loss") != "bce"))
    assert without["difference"].null_count() == len(without)


def test_results_that_cannot_be_paired_are_refused(results):
    with pytest.raises(ValueError, match="no column seed"):
        tables.summary(results.drop("seed"))
    with pytest.raises(
        ValueError, match=r"more than one run of .* mmoe, task ctr, loss"
    ):
        tables.summary(pl.concat([results, results.head(1)]))


def test_written_tables_show_the_numbers(results, tmp_path):
    table = tables.summary(results)
    texts = tables.formatted(table)
    row = table.filter(model="mmoe", task="ctcvr", loss="pwiser").row(0, named=True)
    ends = (f"{row[k]:+.4f}".replace("-", "\N{MINUS SIGN}") for k in ("low", "high"))
    gap = f"{row['difference']:+.4f}".replace("-", "\N{MINUS SIGN}")
    expected = ["mmoe", "CTCVR", "pwiser", "4", f"{row['mean']:.4f}"]
    expected += [f"{row['sd']:.4f}", f"{gap} [{', '.join(ends)}]"]
    lines = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in tables.to_markdown(texts).splitlines()
    ]
    assert {len(line) for line in lines} == {7}
    assert expected in lines
    assert all(cell.endswith(":") for cell in lines[1][3:])

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(tables.to_rich(texts))
    shown = console.export_text()
    assert all(any(cell in line for line in shown.splitlines()) for cell in expected)

    tables.write_csv(table, tmp_path / "table.csv")
    assert pl.read_csv(tmp_path / "table.csv").equals(table)
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_a_difference_that_rounds_to_zero_has_no_sign():
    text = tables.difference_text(-0.00004, -0.0016, 0.00004)
    assert text == "0.0000 [\N{MINUS SIGN}0.0016, 0.0000]"
    assert tables.difference_text(0.00006, -1.0, None, ".2f").startswith("0.00 [")
    numbers = pl.DataFrame({"share [%]": [-0.0001, 0.25], "x": [-0.0, -0.25]})
    assert tables.as_texts(numbers).rows() == [
        ("0.0%", "0.0000"),
        ("25.0%", "\N{MINUS SIGN}0.2500"),
    ]


def test_the_dataset_is_named_where_there_are_several(results):
    both = pl.concat([results, results.with_columns(dataset=pl.lit("kuairand"))])
    assert "Dataset" not in tables.formatted(tables.summary(results)).columns
    texts = tables.formatted(tables.summary(both))
    assert texts["Dataset"].unique().sort().to_list() == ["kuairand", "synthetic"]


def drawn_points(axes):
    return sorted(
        (line.get_xdata()[0], line.get_color())
        for line in axes.lines
        if len(line.get_xdata()) == 1
    )


def test_differences_are_drawn_where_they_are(results):
    table = tables.summary(results)
    figure = plots.differences(table)
    assert [axes.get_title() for axes in figure.axes] == ["CTR", "CTCVR", "CVR"]
    for axes, task in zip(figure.axes, ("ctr", "ctcvr", "cvr"), strict=True):
        shown = table.filter(pl.col("difference").is_not_null(), task=task)
        xs = [x for x, _ in drawn_points(axes)]
        assert xs == pytest.approx(sorted(shown["difference"]))
        bars = [tuple(bar.get_segments()[0][:, 0]) for bar in axes.collections]
        assert sorted(bars) == sorted(shown.select("low", "high").rows())
        assert len({color for _, color in drawn_points(axes)}) == 2
        assert any(set(line.get_xdata()) == {0} for line in axes.lines)
    assert "AUC minus that of BCE" in figure.get_supxlabel()
    with pytest.raises(ValueError, match="no run can be paired with one of the loss x"):
        plots.differences(table.filter(pl.col("loss") == "bce"), baseline="x")


def test_titles_replace_the_names_of_losses(results):
    titles = {"pwiser": "PWiseR on both heads", "bce": "tuned BCE"}
    table = tables.summary(results)
    figure = plots.differences(table, rows=("loss",), titles=titles)
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown == ["PWiseR on both heads", "pwiser_no_click_only_term"]
    assert "minus that of tuned BCE" in figure.get_supxlabel()
    lines = table.filter(task="ctr", model="ple").select(
        panel="task", line="loss", x=pl.lit(1.0), value="mean", low=None, high=None
    )
    figure = plots.interval_lines(lines, "x", "y", titles=titles)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["tuned BCE", *shown]


def test_a_single_pair_is_a_point_without_a_bar(results):
    table = tables.summary(results.filter(pl.col("seed") == 0))
    axes = plots.differences(table).axes[0]
    assert len(drawn_points(axes)) == 4
    assert not axes.collections


def curves():
    return pl.DataFrame(
        [
            {
                "model": model,
                "task": task,
                "loss": loss,
                "seed": seed,
                "epoch": epoch,
                "auc": 0.7 + 0.01 * epoch + 0.001 * seed,
            }
            for model in ("mmoe", "ple")
            for task in ("ctr", "ctcvr")
            for loss in ("bce", "pwiser")
            for seed in range(3)
            for epoch in range(1, 4 + seed)
        ]
    )


def test_training_curves_show_seeds_and_their_mean():
    figure = plots.training_curves(curves())
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["mmoe, CTR", "mmoe, CTCVR", "ple, CTR", "ple, CTCVR"]
    assert figure.axes[0].get_ylabel() == "validation AUC"
    assert figure.axes[2].get_xlabel() == "epoch"
    for axes in figure.axes:
        lines = axes.lines
        assert [len(line.get_xdata()) for line in lines] == 2 * [3, 4, 5, 3]
        # The mean ends with the shortest seed.
        assert lines[3].get_ydata() == pytest.approx([0.711, 0.721, 0.731])
        assert lines[3].get_linewidth() > 2 * lines[0].get_linewidth()
        assert lines[3].get_color() != lines[7].get_color()
        assert lines[3].get_linestyle() != lines[7].get_linestyle()


def test_score_distributions_are_densities_by_level():
    rng = np.random.default_rng(0)
    level = rng.choice(3, 20_000, p=[0.85, 0.147, 0.003])
    scores = {
        name: rng.normal(-4, 1, 20_000) + gap * level
        for name, gap in (("BCE", 0.5), ("BCE + PWiseR", 1.5))
    }
    names = ["no_click", "click_only", "conversion"]
    figure = plots.score_distributions(scores, level, names, "ctcvr")
    means = []
    for axes, name in zip(figure.axes, scores, strict=True):
        assert axes.get_title() == name
        assert axes.get_xlabel() == "CTCVR score (logit)"
        for k, steps in enumerate(axes.patches):
            data = steps.get_data()
            widths = np.diff(data.edges)
            assert data.values @ widths == pytest.approx(1)
            centres = (data.edges[:-1] + data.edges[1:]) / 2
            mean = (data.values * widths) @ centres
            assert mean == pytest.approx(scores[name][level == k].mean(), abs=0.1)
            means.append(mean)
    assert len(means) == 6
    legend = figure.legends[0].get_texts()
    assert legend[2].get_text() == f"conversion ({(level == 2).sum()} rows)"


def test_a_level_without_rows_is_named_and_not_drawn():
    level = np.array([0, 1] * 50)
    figure = plots.score_distributions({"BCE": level - 0.5}, level, ["a", "b", "c"])
    assert len(figure.axes[0].patches) == 2
    assert figure.legends[0].get_texts()[2].get_text() == "c (0 rows)"


def test_reliability_curves_show_the_bins_that_have_positives():
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 0.2, 2000) ** 2
    table = reliability(rng.random(2000) < p, p)
    assert (table.observed == 0).any()
    figure = plots.reliability_curves({"ctr": {"bce": table, "pwiser": table}})
    axes = figure.axes[0]
    shown = table.observed > 0
    assert axes.lines[0].get_xdata() == pytest.approx(table.predicted[shown])
    assert axes.lines[1].get_ydata() == pytest.approx(table.observed[shown])
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    empty = reliability(np.zeros(10), np.full(10, 0.1))
    plots.to_svg(plots.reliability_curves({"ctr": {"bce": empty}}))


def test_a_loss_looks_the_same_in_every_plot(results):
    """One colour a loss; the baseline's is its own; none by colour alone."""
    points = plots.differences(tables.summary(results)).legends[0].get_lines()
    lines = plots.training_curves(curves()).legends[0].get_lines()
    by_label = [
        {line.get_label(): to_hex(line.get_color()) for line in group}
        for group in (points, lines)
    ]
    assert by_label[0]["PWiseR"] == by_label[1]["PWiseR"]
    assert by_label[1]["BCE"] not in by_label[0].values()
    assert len({line.get_marker() for line in points}) == len(points)
    assert len({line.get_linestyle() for line in lines}) == len(lines)


def test_the_same_figure_gives_the_same_bytes(results):
    table = tables.summary(results)
    one, other = (plots.to_svg(plots.differences(table)) for _ in range(2))
    assert one == other
    assert one.startswith("<?xml")
    figure = plots.differences(table)
    assert [plots.to_svg(figure) for _ in range(2)] == [one, one]


class Page(HTMLParser):
    """Elements that are open, all that were seen, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def of(self, tag):
        return [attrs for name, attrs in self.seen if name == tag]


@pytest.fixture(scope="module")
def report(results):
    table = tables.summary(results)
    texts = tables.formatted(table)
    section = Section(
        "Does it <help>?",
        "What was asked & why",
        "By +0.0031 [+0.0010, +0.0052].",
        [
            TableBlock(texts, 'AUC of "all" models'),
            Picture(plots.differences(table), 'A plot of "differences" & zero', "Cap."),
            TableBlock(results, "All runs", folded=True),
        ],
        command="make demo",
        configuration="model:\n  name: mmoe\n",
    )
    other = Section("Another", "?", "!")
    return Report("Title <&>", "Intro", [section, other])


def test_the_page_is_whole_and_needs_nothing_else(report, results):
    text = report.html()
    page = Page(text)
    assert page.open == []
    assert page.of("html") == [{"lang": "en"}]
    assert page.of("script") == []
    assert page.of("link") == []
    ids = [attrs["id"] for _, attrs in page.seen if "id" in attrs]
    assert len(set(ids)) == len(ids)
    targets = {attrs["href"].removeprefix("#") for attrs in page.of("a")}
    assert targets <= set(ids)
    assert len(targets) == 2
    image = page.of("img")[0]
    assert image["alt"] == 'A plot of "differences" & zero'
    kind, data = image["src"].split(",")
    assert kind == "data:image/svg+xml;base64"
    picture = base64.b64decode(data).decode()
    # Namespaces are names; nothing in the page or its pictures is fetched.
    fetched = re.findall(r'(?:href|src|url)\s*[=(]\s*["\']?(https?:[^"\')]+)', picture)
    assert fetched == []
    assert "http" not in re.sub(r'src="data:[^"]*"', "", text)
    words = "".join(page.text)
    for part in ("Does it <help>?", "Title <&>", "What was asked & why", "make demo"):
        assert part in words
    assert "By +0.0031 [+0.0010, +0.0052]." in words
    assert "name: mmoe" in words
    assert "jax" in words
    assert all(run in words for run in results["run"])


def test_the_page_can_be_read_by_all(report):
    """Tables have captions and scopes and scroll from the keyboard; colours are two."""
    text = report.html()
    page = Page(text)
    assert len(page.of("caption")) == len(page.of("table")) == 3
    assert all(attrs["scope"] == "col" for attrs in page.of("th"))
    regions = [attrs for attrs in page.of("div") if attrs.get("class") == "scroll"]
    assert len(regions) == 4
    assert all(r["tabindex"] == "0" and r["aria-label"] for r in regions)
    assert "prefers-color-scheme: dark" in text
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in (
        page.of("meta")
    )


def test_the_page_is_written_whole_or_not_at_all(report, tmp_path, monkeypatch):
    path = tmp_path / "runs" / "report.html"
    report.write(path)
    assert path.read_text(encoding="utf-8") == report.html()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", killed)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        Report("Other").write(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_the_page_opens_with_the_answer(results):
    effects = tables.summary(results)
    picture = Picture(plots.differences(effects, rows=("dataset",)), "Effects")
    verdict = Verdict(["One.", "Two <&>.", "Three."], [picture])
    section = Section("First question", "?", "!")
    text = Report("Title", "Data: ...", [section], verdict=verdict).html()
    places = [
        text.index(part)
        for part in ("One.", "Two &lt;&amp;&gt;.", "Three.", "<img", "Data", "First")
    ]
    assert places == sorted(places)


NAMES = ("a [b]", "[/red]$x_1$", "_z$")


@pytest.mark.filterwarnings("error")
def test_names_of_users_are_never_markup(results):
    """rich, HTML and matplotlib show brackets, dollars and underscores as they are."""
    odd = results.with_columns(
        pl.col("model").replace({"mmoe": NAMES[1]}),
        pl.lit(NAMES[0]).alias("dataset"),
        pl.col("task").replace({"cvr": NAMES[2]}),
    )
    table = tables.summary(odd)
    texts = tables.formatted(
        pl.concat([table, table.with_columns(dataset=pl.lit("x"))])
    )
    shown = terminal(texts, 120)
    page = Report("T", sections=[Section("S", "?", "!", [TableBlock(texts, "C")])])
    words = "".join(Page(page.html()).text)
    for name in (*NAMES[:2], NAMES[2].upper()):
        assert name in shown
        assert name in words
    pictures = [
        plots.differences(table),
        plots.training_curves(curves().with_columns(loss=pl.lit("_x$"))),
        plots.score_distributions({"$b": np.arange(9.0)}, np.arange(9) % 3, NAMES),
    ]
    for figure in pictures:
        plots.to_svg(figure)
    ticks = [label.get_text() for label in pictures[0].axes[0].get_yticklabels()]
    assert ticks[0] == NAMES[1]
    legend = [text.get_text().strip() for text in pictures[2].legends[0].get_texts()]
    assert [text.rsplit(" (", 1)[0] for text in legend] == [
        "a [b]",
        "[/red]$x 1$",
        "z$",
    ]


def terminal(texts: pl.DataFrame, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(tables.to_rich(texts, "[title]", width))
    return console.export_text()


def test_no_name_is_cut_in_80_columns(results):
    models = {"mmoe": "single_task", "ple": "shared_bottom"}
    named = results.with_columns(pl.col("model").replace(models))
    both = [named.with_columns(dataset=pl.lit(d)) for d in ("synthetic", "industrial")]
    texts = tables.formatted(tables.summary(pl.concat(both)))
    narrow = terminal(texts, 80)  # too wide: names go on in the next line
    shown = terminal(texts.filter(pl.col("Loss").is_in(LOSSES[:2])), 80)
    assert max(map(len, shown.splitlines())) <= 80
    for name in (*models.values(), *LOSSES[:2], "synthetic", "industrial"):
        assert name in shown
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    row = tables.difference_text(*tables.summary(named).row(1)[-5:-2])
    assert row in shown
    assert row in narrow


def test_a_null_has_its_reason(results):
    rows = results.with_columns(
        auc=pl.when(pl.col("task") == "cvr").then(None).otherwise("auc"),
        reason=pl.when(pl.col("task") == "cvr").then(pl.lit("no rows")),
    )
    table = tables.summary(rows)
    texts = tables.formatted(table)
    assert set(texts.filter(Task="CVR")["Mean AUC"]) == {"\N{EN DASH} (no rows)"}
    assert "no rows" not in "".join(texts.filter(Task="CTR")["Mean AUC"])
    assert len(plots.differences(table).axes) == 2
    assert "(no rows)" in terminal(texts, 80)


def test_numbers_have_the_digits_of_their_unit():
    table = pl.DataFrame(
        {"time [ms]": [1.0, 1234.56], "share [%]": [0.5, None], "auc": [0.7, 1e-7]}
    )
    assert tables.as_texts(table).rows() == [
        ("1.0", "50.0%", "0.7000"),
        ("1,234.6", "\N{EN DASH}", "0.0000"),
    ]


def test_an_outlier_does_not_squash_the_rest(results):
    table = tables.summary(results).with_columns(
        pl.when(
            (pl.col("model") == "ple")
            & (pl.col("task") == "ctr")
            & (pl.col("loss") == LOSSES[2])
        )
        .then(pl.col("difference", "low", "high") - 1)
        .otherwise(pl.col("difference", "low", "high"))
        .name.keep()
    )
    panel = plots.differences(table).axes[0]
    low, high = panel.get_xlim()
    assert high - low < 0.1
    assert any(text.get_text().startswith("\N{MINUS SIGN}1.0") for text in panel.texts)
