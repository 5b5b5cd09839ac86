"""Choice of a source by its name: a prefix, a pattern, a folder, or a file by its suffix."""

import glob
import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from fastmoco.data.sources.arrays import open_arrays
from fastmoco.data.sources.builtin import open_builtin
from fastmoco.data.sources.folder import open_folder, open_listing
from fastmoco.data.sources.listing import list_images
from fastmoco.data.sources.manifest import open_manifest
from fastmoco.data.sources.recognition import ARCHIVES
from fastmoco.data.sources.samples import SampleSet, SourceOptions
from fastmoco.data.sources.tar_shards import open_shards
from fastmoco.data.sources.torchvision_sets import SETS, open_torchvision
from fastmoco.errors import UsageError
from fastmoco.files import regular_file

_TAR_SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst", ".lz4")
_SHARD = re.compile(r"[^/]*\.(tar|tgz|tbz2|txz|tar\.(gz|bz2|xz|zst|lz4))")  # directly in a folder
_MAX_SHARDS = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")

_Opener = Callable[[Path, SourceOptions], SampleSet]

PREFIXES: dict[str, Callable[[str, SourceOptions], SampleSet]] = {
    "builtin": open_builtin,
    "torchvision": open_torchvision,
}
SUFFIXES: dict[str, _Opener] = {
    **dict.fromkeys((".csv", ".tsv", ".parquet"), open_manifest),
    **dict.fromkeys((".npy", ".npz", ".pt", ".pth"), open_arrays),
    **dict.fromkeys(_TAR_SUFFIXES, lambda path, _: open_shards([path])),
}
_TAKES_LABELS = (open_folder, open_arrays, open_torchvision)
_KINDS = (
    "a folder of images, a .csv or .parquet manifest with a column path, .tar shards "
    "('train-{0000..0009}.tar'), a .npy, .npz or .pt array, builtin:textures, or torchvision:NAME "
    f"with NAME of {', '.join(SETS)}"
)


def open_source(source: str, options: SourceOptions) -> SampleSet:
    """List a source's samples.

    Args:
        source: A folder, a manifest, tar shards, an array file, or ``PREFIX:NAME``.
        options: Further options of the source.

    Raises:
        UsageError: If the kind is unknown, or an option does not apply to it.
        ValueError: If the source holds no images, or is damaged.
        FileNotFoundError: If the source, or a file that it needs, is missing.
    """
    prefix, colon, name = source.partition(":")
    if colon and prefix in PREFIXES:
        _refuse_unused(source, options, PREFIXES[prefix])
        return PREFIXES[prefix](name, options)
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_folder(path, options)
    if path.exists():
        kind = SUFFIXES.get(regular_file(path).suffix.lower())
        if kind is None and path.suffix.lower() in ARCHIVES:
            raise UsageError(f"{source}: is an archive; unpack it and name its folder")
        if kind is None:
            raise UsageError(f"{source}: is of an unknown kind; name {_KINDS}")
        _refuse_unused(source, options, kind)
        return kind(path, options)
    if re.search(r"[*?\[{]", source):
        _refuse_unused(source, options, open_shards)
        return open_shards(expand_pattern(str(path)))
    raise FileNotFoundError(f"{source}: no such folder or file{_guess(source)}; name {_KINDS}")


def expand_pattern(pattern: str) -> list[Path]:
    """List the files of ``train-{0000..0009}.tar``, ``{a,b}.tar`` or ``*.tar``, in this order.

    Raises:
        UsageError: If there are too many, or not all are tar files.
        FileNotFoundError: If a named file does not exist, or none matches.
    """
    found: dict[str, None] = {}
    for part in _expand_braces(pattern):
        fitting = sorted(glob.glob(part)) if re.search(r"[*?\[]", part) else [part]
        if not fitting or not Path(fitting[0]).exists():
            raise FileNotFoundError(f"{part}: no such shard (of {pattern})")
        if other := next(
            (name for name in fitting if not name.lower().endswith(_TAR_SUFFIXES)), None
        ):
            raise UsageError(f"{pattern}: matches {other}, which is no .tar file; name its folder")
        found |= dict.fromkeys(fitting)
    return [Path(name) for name in found]


def _expand_braces(pattern: str) -> list[str]:
    """Expand braces like a shell: ``{08..10}`` keeps the width, ``{a,b}`` takes each."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    limits = _RANGE.fullmatch(match[1])
    middles = match[1].split(",")
    if limits:
        first, last = int(limits[1]), int(limits[2])
        if abs(last - first) >= _MAX_SHARDS:
            raise UsageError(f"{pattern}: names more than {_MAX_SHARDS:,} shards")
        step = 1 if first <= last else -1
        width = max(map(len, limits.groups())) if match[1].startswith("0") else 0
        middles = [f"{number:0{width}d}" for number in range(first, last + step, step)]
    tails = _expand_braces(pattern[match.end() :])
    if len(middles) * len(tails) > _MAX_SHARDS:
        raise UsageError(f"{pattern}: names more than {_MAX_SHARDS:,} shards")
    return [pattern[: match.start()] + middle + tail for middle in middles for tail in tails]


def _open_folder(folder: Path, options: SourceOptions) -> SampleSet:
    """Open the images of a folder and its subfolders; if there are none, its tar shards."""
    listing = list_images(folder)
    is_shard = {name: bool(_SHARD.fullmatch(name.lower())) for name in listing.archives}
    if listing.names or not any(is_shard.values()):
        _refuse_unused(str(folder), options, open_folder)
        return open_listing(listing, options)
    _refuse_unused(str(folder), options, open_shards)
    samples = open_shards([folder / name for name in listing.archives if is_shard[name]])
    for name in listing.archives:
        if not is_shard[name]:
            listing.passed_over.add("archives", name)
    samples.passed_over.merge(listing.passed_over)
    return samples


def _refuse_unused(source: str, options: SourceOptions, kind: Callable[..., SampleSet]) -> None:
    if options.split and kind in (open_folder, open_shards):
        raise UsageError(f"{source}: has no split={options.split}; name the files of that split")
    if options.labels and kind not in _TAKES_LABELS:
        raise UsageError(
            f"{source}: takes no labels={options.labels}; only folders and array files do"
        )
    if options.root and kind is not open_torchvision:
        raise UsageError(f"{source}: takes no root={options.root}; only torchvision:NAME does")
    if options.download and kind is not open_torchvision:
        raise UsageError(f"{source}: takes no download=true; only torchvision:NAME does")


def _guess(source: str) -> str:
    """``; did you mean ...?`` if the source is nearly a known ``PREFIX:NAME`` or NAME."""
    known = ["builtin:textures", *(f"torchvision:{name}" for name in SETS)]
    spelled = {name.lower(): name for name in known}
    spelled |= {name.partition(":")[2].lower(): name for name in known}
    near = get_close_matches(source.lower(), spelled, 1, cutoff=0.8)
    return f"; did you mean {spelled[near[0]]}?" if near else ""
