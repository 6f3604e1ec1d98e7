"""Sources at paths of fsspec, such as s3://bucket/clicks: copied beside the output."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pwiser_jax.atomic import scratch_folder
from pwiser_jax.errors import UserError, first_line


@contextmanager
def local_copy(source: str | Path, output: Path) -> Iterator[Path]:
    """The source as a local path; a remote one is copied into a folder beside `output`.

    `prepare` reads its source several times, so a copy costs less than remote reads.

    Raises:
        UserError: fsspec is not installed, or the source cannot be read; errors of
            local paths inside the context name the remote ones.
    """
    url = str(source).rstrip("/")
    if "://" not in url:
        yield Path(source)
        return
    try:
        import fsspec
    except ModuleNotFoundError:
        raise UserError(
            f"{url} needs fsspec, which is not installed: pip install "
            "'pwiser-jax[remote]'"
        ) from None
    with scratch_folder(output) as folder:
        copy = folder / url.rpartition("/")[2]
        try:
            system, path = fsspec.url_to_fs(url)
            if not system.exists(path):
                raise UserError(f"{url}: no such file or folder")
            system.get(path, str(copy), recursive=system.isdir(path))
        except UserError:
            raise
        except Exception as error:  # each file system raises its own
            raise UserError(f"{url} cannot be read: {first_line(error)}") from error
        try:
            yield copy
        except UserError as error:
            raise UserError(str(error).replace(str(copy), url)) from None
