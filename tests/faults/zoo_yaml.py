"""Hostile and damaged YAML files, made by code; none may be built, hang or end in a traceback."""

from collections.abc import Iterator

Case = tuple[str, bytes, str]
"""Name, the file's bytes, and a word of the reason for which it is refused."""


def cases() -> Iterator[Case]:
    """30 files, of which no reader may take one."""
    yield from ((name, text.encode(), word) for name, text, word in [*_bombs(), *_types()])
    yield from _bytes()


def _bombs() -> Iterator[tuple[str, str, str]]:
    """Files that are small and stand for much."""
    links = "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    pairs = "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 40))
    merged = "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))
    many = "values"
    yield "billion laughs", f"a0: &a0 [lol,lol,lol]\n{links}", many
    yield "doubling mappings", f"a0: &a0 {{k: v}}\n{pairs}", many
    yield "doubling merges", f"a0: &a0 {{k: v}}\n{merged}", many
    yield "one long list", "crop_scale: [" + "1," * 10_000 + "1]", many
    yield "many keys", "".join(f"k{n}: 1\n" for n in range(5_000)), many
    yield "one alias, often", "a: &a [1,1,1]\nb: [" + "*a," * 4_000 + "*a]", many
    yield "deep list", "hue: " + "[" * 900 + "]" * 900, "levels"
    yield "deep list, not closed", "hue: " + "[" * 900, "levels"
    yield "deep mapping", "".join(" " * n + "a:\n" for n in range(300)), "levels"
    yield "deep block list", "- " * 900 + "1", "levels"
    yield "deep flow mapping", "{a: " * 900 + "1" + "}" * 900, "levels"
    yield "contains itself", "a: &a [*a]", "alias"
    yield "contains itself, as a key", "&a {*a : 1}", "alias"
    yield "alias without anchor", "hue: *nothing", "alias"


def _types() -> Iterator[tuple[str, str, str]]:
    """Files that ask for more than plain values, or have values of a wrong form."""
    call = "!!python/object/apply:os.system"
    yield "calls os.system", f"hue: {call} ['touch /tmp/never']", "constructor"
    yield "makes an object", "hue: !!python/object/new:object []", "constructor"
    yield "imports a module", "hue: !!python/module:os", "constructor"
    yield "names a function", "hue: !!python/name:builtins.eval", "constructor"
    yield "own tag", "hue: !unknown 1", "constructor"
    yield "timestamp of nothing", "hue: !!timestamp x", "NoneType"
    yield "int of a word", "hue: !!int x", "int"
    yield "int of too many digits", "hue: " + "9" * 10_000, "digits"
    yield "month 13", "hue: !!timestamp 2001-13-45", "month"
    yield "list as a key", "? [1, 2]\n: 3", "unhashable"
    yield "broken base64", "hue: !!binary a", "base64"


def _bytes() -> Iterator[Case]:
    """Bytes that are no text, or no YAML."""
    yield "binary", bytes(range(256)), "decode"
    yield "zeros", bytes(300), "special characters"
    yield "cut", b'crop_scale: [0.3, "1', "expected"
    yield "tabs", b"a:\n\t- 1\n", "token"
    yield "too large", b"#" + b"x" * (1 << 20), "larger"
