"""Dataset files of the built-in images."""

from pathlib import Path

from fastmoco.data.beton import BetonFile
from fastmoco.data.convert import ConvertConfig, Encoding, convert

SOURCE = "builtin:textures"


def builtin_file(path: Path, split: str) -> Path:
    """Return the dataset file of a split (train or test); make it if missing or damaged."""
    try:
        BetonFile.open(path).close()
    except (FileNotFoundError, ValueError):
        convert(SOURCE, path, ConvertConfig(split=split, encoding=Encoding.raw))
    return path
