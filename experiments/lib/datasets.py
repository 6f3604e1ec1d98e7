"""The datasets of the experiments: built in, KuaiRand, or any prepared folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from experiments.lib.industrial import prepare_industrial
from pwiser_jax.data.datasets.kuairand import prepare_kuairand
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.data.prepared.manifest import FILE, read_manifest

Conversion = Literal["like", "long_view"]
CONFIGS = Path(__file__).resolve().parents[2] / "configs"

# Days of KuaiRand's public log that the experiments use: the epoch is chosen on the
# day before the two that are tested.
TRAIN_UNTIL, VALID_UNTIL = "2022-05-02", "2022-05-03"


@dataclass(frozen=True)
class Dataset:
    """A prepared folder, created at first use, and the configs of its models.

    Args:
        name: in result tables and on the command line.
        title: in reports.
        folder: the prepared folder.
        configs: a folder with MODEL.yaml for each model.
        make: prepares the folder; None: it must exist.
        truth: whether its rows hold the true probabilities.
        core: whether every experiment runs on it, or only the paper's table.
        overrides: options of every run on it, such as "--train.epochs=3".
    """

    name: str
    title: str
    folder: Path
    configs: Path
    make: Callable[[Path], object] | None = None
    truth: bool = False
    core: bool = True
    overrides: tuple[str, ...] = ()

    def ready(self) -> Path:
        """The folder, prepared.

        Raises:
            UserError: it is missing and cannot be created.
        """
        if self.make is not None and not (self.folder / FILE).is_file():
            self.make(self.folder)
        read_manifest(self.folder)
        return self.folder

    def relabelled(
        self, place: Path, kind: str, change: Callable[[Path, Path], None]
    ) -> "Dataset":
        """The same rows with other labels, see `relabel`, in a folder of `place`."""
        folder = place / f"{self.folder.name}_{kind}"
        return replace(
            self, folder=folder, make=lambda output: change(self.ready(), output)
        )


def synthetic(
    place: Path,
    rows: int,
    labels: int = 2,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """The synthetic funnel with higher rates than a shop's: enough conversions in few
    rows. A quarter of the sessions is test.

    Args:
        place: the folder of prepared folders.
        rows, labels: as in `prepare_synthetic`.
        options: further arguments of it, such as `bots`.
    """

    more = options or {}

    def make(output: Path) -> object:
        return prepare_synthetic(
            output,
            rows=rows,
            click_rate=0.2,
            conversion_rate=0.1 if labels == 2 else 0.2,
            users=max(rows // 60, 50),
            items=max(rows // 200, 50),
            labels=labels,
            valid=0.15,
            test=0.25,
            **more,
        )

    name, title = "synthetic", "synthetic data"
    if labels != 2:
        name, title = f"{name}, {labels} labels", f"{title} with {labels} labels"
    kind = "".join(f"_{key}_{value:g}" for key, value in more.items())
    folder = place / f"synthetic_{rows}_{labels}{kind}"
    return Dataset(name, title, folder, CONFIGS / "synthetic", make, truth=True)


def industrial(place: Path, rows: int) -> Dataset:
    """See `industrial.py`."""
    folder = place / f"industrial_{rows}"
    return Dataset(
        "industrial",
        "simulated industrial data",
        folder,
        CONFIGS / "synthetic",
        lambda output: prepare_industrial(output, rows),
        core=False,
    )


def kuairand(
    place: Path, source: Path, conversion: Conversion, train_rows: int | None = None
) -> Dataset:
    """KuaiRand-Pure from its public files; a conversion is a like or a long view.

    Its name and folder tell a sample of its train rows.
    """

    def make(output: Path) -> object:
        return prepare_kuairand(
            source,
            output,
            conversion=conversion,
            train_until=TRAIN_UNTIL,
            valid_until=VALID_UNTIL,
            train_rows=train_rows,
        )

    label = conversion.replace("_", " ")
    name, title = f"kuairand, {label}", f"KuaiRand-Pure (conversions are {label}s"
    folder = f"kuairand_{conversion}"
    if train_rows is not None:
        name, folder = f"{name} ({train_rows:,} train rows)", f"{folder}_{train_rows}"
        title = f"{title}; {train_rows:,} train rows"
    core = conversion == "like"
    return Dataset(
        name, f"{title})", place / folder, CONFIGS / "kuairand", make, core=core
    )


def given(folder: Path, configs: Path) -> Dataset:
    """A folder that `pwiser prepare` wrote, called by its name."""
    return Dataset(folder.name, folder.name, folder, configs)
