"""What may be an image, by the name of a file or else by its first bytes.

Only a file whose name decides nothing is opened, so that listing a folder of a million images, or
of as many captions, opens none of them.
"""

import os
import re

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif"}
)
"""Of the formats that are read."""
_UNREAD = frozenset(
    {".jxl", ".jp2", ".j2k", ".psd", ".svg", ".ico", ".tga", ".exr"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef"}
)
"""Of other formats of images: such a file goes to the list of bad images."""
ARCHIVES = frozenset(
    {".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".7z", ".rar"}
)
"""Of files that may hold images."""
_NEVER_IMAGES = frozenset(
    {".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".parquet", ".yaml", ".yml", ".md"}
    | {".html", ".pdf", ".cls", ".npy", ".npz", ".mat", ".pt", ".pth", ".beton", ".py", ".mp4"}
)
"""Of captions, labels and other files that are often as many as the images."""
HEAD_BYTES = 32
"""Bytes that `starts_like_image` looks at."""

_KNOWN = "|".join(sorted(extension[1:] for extension in EXTENSIONS | _UNREAD))
# `leaf.jpg?w=300`, `leaf.jpg.1` and `leaf.jpg.part` of downloads, `leaf.jpg~`; not `leaf.jpg.json`.
_LIKE_IMAGE = re.compile(
    rf"\.({_KNOWN})(\?.*|[^a-z0-9.][^.]*|\.[0-9]+|\.(part|crdownload|download|tmp|bak|orig))$",
    re.IGNORECASE | re.DOTALL,
)
_IMAGE_START = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8|II\*\0|MM\0\*|RIFF.{4}WEBP|BM.{4}\0{4}.{4}[\x0c(48@l|]\0{3}"
    rb"|P[1-6]\s+[#0-9]|.{4}ftyp(avi|hei|mif1|msf1)|8BPS|\0{3}\x0c(jP|JXL) ",
    re.DOTALL,
)


def extension_of(name: str) -> str:
    """Lower-case extension of a file's name with its dot, or ``""``."""
    return os.path.splitext(name)[1].lower()


def named_like_image(name: str) -> bool:
    """Whether the name is that of an image, of a format that is read or of another."""
    extension = extension_of(name)
    return extension in EXTENSIONS or extension in _UNREAD or bool(_LIKE_IMAGE.search(name))


def named_otherwise(name: str) -> str:
    """Why the name is not that of an image (a key of `passed_over.REASONS`); "" if it may be."""
    extension = extension_of(name)
    if extension in ARCHIVES:
        return "archives"
    return "not images" if extension in _NEVER_IMAGES else ""


def starts_like_image(head: bytes) -> bool:
    """Whether a file's first `HEAD_BYTES` are those of an image."""
    return bool(_IMAGE_START.match(head))
