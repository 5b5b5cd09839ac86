"""Hostile and damaged tar files, made by code: headers that claim sizes, chains, odd names."""

import tarfile
from collections.abc import Iterator

Case = tuple[str, bytes, str]
"""Name, the file's bytes, and a word of the reason; "" if the archive is read."""

IMAGE = b"\xff\xd8\xff" + bytes(509)
END = bytes(1024)


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """A header block that claims any size; those that do not fit in octal are base 256."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    if 0 <= size < 8**11:
        block[124:136] = b"%011o\0" % size
    else:
        block[124:136] = size.to_bytes(12, "big", signed=True)
        block[124] |= 0x80
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    """Data up to a multiple of the block."""
    return data + bytes(-len(data) % 512)


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header and its data."""
    return header(name, len(data), kind) + padded(data)


def extended(**values: str) -> bytes:
    """A pax header with these values."""
    lines = b""
    for key, value in values.items():
        rest = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(rest) + len(str(len(rest)))
        lines += str(length + (len(str(length)) > len(str(len(rest))))).encode() + rest
    return member("pax", lines, tarfile.XHDTYPE)


JPEG = member("a.jpg", IMAGE)


def cases() -> Iterator[Case]:
    """32 archives."""
    yield from _claims()
    yield from _chains()
    yield from _odd_names()
    yield from _damaged()


def _claims() -> Iterator[Case]:
    """Sizes that are not there."""
    for kind, name in ((b"x", "pax"), (b"L", "long name"), (b"K", "long link"), (b"g", "global")):
        yield f"{name} of 4 GB", header("x", 1 << 32, kind) + JPEG + END, "claims"
    yield "pax of an exabyte", header("x", 1 << 60, b"x") + JPEG + END, "claims"
    yield "pax of negative size", header("x", -1024, b"x") + JPEG + END, "claims"
    yield "image of a terabyte", header("a.jpg", 1 << 40) + END, "unexpected end"
    yield "image of 2^80 bytes", header("a.jpg", 1 << 80) + END, "cannot fit"
    yield "image of negative size", header("a.jpg", -512) + IMAGE + END, "damaged"
    yield "label of a terabyte", JPEG + header("a.cls", 1 << 40) + END, "unexpected end"
    yield "label of 5 MB", JPEG + member("a.cls", bytes(5 << 20)) + END, "is no label"
    yield "size by pax, negative", extended(size="-1") + JPEG + END, "damaged"
    yield "size by pax, 30 digits", extended(size="9" * 30) + JPEG + END, "cannot fit"
    yield (
        "sparse by pax, map missing",
        extended(GNU__sparse__major="1", GNU__sparse__minor="0")
        + member("a.jpg", b"99999999\n")
        + END,
        "unpack",
    )
    yield "sparse by pax, map of words", extended(GNU__sparse__map="0,x,1") + JPEG + END, "int"
    yield "sparse, old", header("a.jpg", 512, b"S") + IMAGE + END, ""


def _chains() -> Iterator[Case]:
    """Headers of headers."""
    yield "3,000 pax headers", header("x", 0, b"x") * 3000 + JPEG + END, "recursion"
    yield "3,000 long names", member("x", b"a", b"L") * 3000 + JPEG + END, "recursion"
    yield "3,000 global headers", member("g", b"8 a=bcd\n", b"g") * 3000 + JPEG + END, "recursion"
    circle = header("a.jpg", 0, tarfile.SYMTYPE, "b.jpg") + header("b.jpg", 0, b"2", "a.jpg")
    yield "links in a circle", circle + END, ""
    yield "link to itself", header("a.jpg", 0, tarfile.LNKTYPE, "a.jpg") + END, ""
    yield "JSON of 100,000 levels", JPEG + member("a.json", b"[" * 100_000) + END, "nested"


def _odd_names() -> Iterator[Case]:
    """Names that lead elsewhere or command a terminal; nothing is unpacked, so they are names."""
    yield "parent folder", member("../../a.jpg", IMAGE) + END, ""
    yield "absolute", member("/etc/a.jpg", IMAGE) + END, ""
    yield "escape sequences", member("a\n\x1b[2J\u202e.jpg", IMAGE) + END, ""
    yield "class with a zero byte", JPEG + member("a.cls", b"cat\0dog") + END, "zero byte"
    yield "link out of the archive", header("a.jpg", 0, b"2", "/etc/passwd") + END, ""
    yield "device and pipe", header("a.jpg", 0, b"3") + header("b.jpg", 0, b"6") + END, "no images"


def _damaged() -> Iterator[Case]:
    """Cut or inconsistent archives."""
    yield "the same name twice", JPEG + JPEG + END, "twice"
    yield "no end", JPEG, "cut or damaged"
    yield "pax without a line break", member("x", b"999999999 ", b"x") + JPEG + END, ""
    yield "pax of length zero", member("x", b"0 a=b\n", b"x") + JPEG + END, "invalid header"
    yield "random bytes", bytes(range(256)) * 8, "not a tar file"
