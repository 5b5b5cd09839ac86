"""A JSON record with a checksum of itself: any changed byte is noticed.

The record's key ``manifest`` is the SHA-256 of its other values in canonical form, among them the
SHA-256 of the tensors that it describes: one sum over both. The text must also be the very one that
`record_text` gives, so that a change which means the same (``1e5``, ``1E5``) is noticed too.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fastmoco.parsing import parse_json

MANIFEST = "manifest"


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its checksum."""
    return {**record, MANIFEST: _checksum(record)}


def record_text(record: Mapping[str, Any]) -> str:
    """The text of a record, as a file holds it."""
    return json.dumps(record, indent=1)


def parse_record(
    text: str, types: Mapping[str, type | tuple[type, ...]], *, first_sealed: int
) -> dict[str, Any]:
    """Read and check the text of a record.

    Args:
        text: What a file holds.
        types: Keys that the record must have and the types of their values; among them
            ``format_version``.
        first_sealed: Format version from which on a record has a checksum.

    Raises:
        ValueError: With a reason, if it was changed or is no such record.
    """
    try:
        record = parse_json(text)
    except ValueError as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(record, dict):
        raise ValueError("it holds no object")
    for key, kind in types.items():
        value = record.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"its {key} is missing or of a wrong kind")
    if record["format_version"] < first_sealed and MANIFEST not in record:
        return record
    try:
        is_sound = record.get(MANIFEST) == _checksum(record) and text == record_text(record)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not is_sound:
        raise ValueError("wrong checksum")
    return record


def _checksum(record: Mapping[str, Any]) -> str:
    others = {key: value for key, value in record.items() if key != MANIFEST}
    canonical = json.dumps(others, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
