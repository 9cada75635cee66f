"""Write a model as a single file for programs that read metatomic (extra `metatomic`).

These include LAMMPS, i-PI, ASE and torch-sim; https://docs.metatensor.org/metatomic lists all. The
file contains the network and everything around it as TorchScript. Loading such a file runs code
that it contains. Evenfield therefore only writes these files and never reads them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ...core.destination import FileKind
from ...core.errors import MissingPackageError
from ...core.files import file_errors, whole_file
from ...core.torch_modes import own_modes
from ..heads.results import ResultHeads
from ..hub.load import LoadedModel
from .calculator import checked_dtype, refuse_charges, refuse_physics
from .errors import EngineError


# the top-level packages that the extra installs
EXTRA = ("metatensor", "metatomic")


def _is_export(path: Path) -> bool:
    """Whether a file is a TorchScript archive with evenfield's code.

    Other programs write metatomic files too.
    """
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/__torch__/evenfield/" in name for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


METATOMIC_FILE = FileKind("a metatomic file of `evenfield hub export-metatomic`", _is_export)


@own_modes()
def export_metatomic(
    model: LoadedModel,
    path: Path | str,
    *,
    level_of_theory: str | None = None,
    dtype: str = "float64",
    heads: bool | Sequence[str] = False,
) -> Path:
    """Write one level of theory of a model as a metatomic file; returns `path`.

    `dtype` is used for the network and for all data exchanged with the other program. float32 is
    faster, but leaves only seven digits for the total energy, which includes E0.

    `level_of_theory` defaults to the default level of the model. `heads` adds heads for other
    properties as outputs: True for all of them, or a list of names. Charges become the output
    `charge`, direct forces `non_conservative_force`, and all others `evenfield::NAME`.

    Raises EngineError for a path that does not end in .pt, an unknown dtype, a level without
    trained elements, or a model with physics or learned charges; HeadError if the model has no
    heads or lacks one of those named; LevelError for an unknown level of theory, or if the model
    has several levels and no default; MissingPackageError without metatomic; FileError if the file
    cannot be written.
    """
    path = Path(path)
    if path.suffix != ".pt":
        raise EngineError(
            "programs that read metatomic need files that end in .pt",
            file=path,
            remedy="choose such a name",
        )
    # all checks come before the import, which takes seconds, and before a folder is created
    checked_dtype(dtype)
    refuse_physics(model.potential, "a file of metatomic")
    refuse_charges(model.potential, "a file of metatomic")
    level = model.level_to_use(level_of_theory)
    if not model.record.trained_symbols(level):
        raise EngineError(
            f"no element is listed for {level}, so every structure would be refused",
            file=model.reference,
            remedy="choose another level of theory",
        )

    chosen = model.chosen_heads(heads)
    outputs = None if chosen is None else ResultHeads(chosen)

    with _index_select_of_torch():
        try:
            from .metatomic_model import write
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in EXTRA:
                raise
            raise MissingPackageError(
                "metatomic", needed_for="a metatomic export", extra="metatomic"
            ) from error

    # metatomic writes in place, so a failure would leave a partial file under the final name
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as unfinished:
            write(model, level, dtype, unfinished, outputs)
    return path


@contextmanager
def _index_select_of_torch() -> Iterator[None]:
    """Restore torch's own index_select while metatensor is imported.

    torch-geometric, if it is loaded, has replaced it with a function that TorchScript cannot
    compile.
    """
    replaced = torch.index_select
    torch.index_select = torch._C._VariableFunctions.index_select
    try:
        yield
    finally:
        torch.index_select = replaced
