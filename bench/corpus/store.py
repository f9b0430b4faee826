"""Nix's encodings, as far as the corpus needs them: nix-base32, store path hashes, and the archive format."""
import hashlib
import struct

ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"
STORE = "/nix/store/"


def nix32(data):
    """Nix's base 32: digits of the little-endian number, most significant first."""
    digits = (len(data) * 8 - 1) // 5 + 1
    number = int.from_bytes(data, "little")
    return "".join(ALPHABET[number >> (5 * digit) & 31] for digit in reversed(range(digits)))


def path_hash(seed):
    """The 32 characters that open a store path's name; any 20 bytes do, so they come from a seed."""
    return nix32(hashlib.sha256(seed.encode()).digest()[:20])


def text(value):
    """A string as NARs hold it: length, bytes, zeroes up to the next multiple of eight."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(value)) + value + b"\0" * (-len(value) % 8)


def nar(node, write):
    """Writes the NAR of a tree: a dict is a directory, ("l", target) a symlink, ("f", executable, contents) a file."""
    write(text("nix-archive-1"))
    _node(node, write)


def _node(node, write):
    write(text("(") + text("type"))
    if isinstance(node, dict):
        write(text("directory"))
        for name in sorted(node, key=lambda name: name.encode("utf-8", "surrogateescape")):
            write(text("entry") + text("(") + text("name") + text(name) + text("node"))
            _node(node[name], write)
            write(text(")"))
    elif node[0] == "l":
        write(text("symlink") + text("target") + text(node[1]))
    else:
        write(text("regular"))
        if node[1]:
            write(text("executable") + text(""))
        write(text("contents") + text(node[2]))
    write(text(")"))
