"""Names of models to folders: packaged checkpoints by name, others by path. Nothing is fetched."""

from pathlib import Path

from diffusion4d.errors import UserError

WEIGHTS = Path(__file__).parent / "weights"
INDEX = "model_index.json"


def packaged() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob(f"*/{INDEX}"))


def find_model(name_or_folder: str | Path) -> Path:
    """The folder of a packaged checkpoint or of the user's own.

    Raises:
        UserError: neither exists; or the folder holds no pipeline.
    """
    if str(name_or_folder) in packaged():
        return WEIGHTS / str(name_or_folder)
    folder = Path(name_or_folder)
    if not folder.is_dir():
        raise UserError(
            f"need a model out of {', '.join(packaged())}, or a folder, got {str(name_or_folder)!r}"
        )
    if not (folder / INDEX).is_file():
        raise UserError(f"need a model folder with {INDEX}, found none in {folder}")
    return folder
