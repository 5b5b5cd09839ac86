"""Misspelled names."""

import difflib


def nearest_name(name: str, known: list[str]) -> str:
    """``; did you mean ...?`` for a misspelled name, or the list of those that are known.

    The same last part under another section is the likelier slip than a similar spelling of the
    whole.
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    near = [key for key in known if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]][:1] or near
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
