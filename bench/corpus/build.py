#!/usr/bin/env python3
"""build.py DIR: turns the fetched packages into two generations of NARs, as a Nix store would hold them.

Debian's files name /usr, /bin/sh and libc by fixed paths; a Nix build holds store paths there. So the strings that a
Nix build would have replaced (own prefix, libc, loader, shells, perl, python) are replaced, and references are found by
scanning, as Nix does. Without that a rebuild would change nothing, and a deduplicating cache would look too good.

Each generation is described by DIR/gen1.json and DIR/gen2.json: a list of
{store_path, hash, nar, nar_hash_hex, nar_hash_nix32, nar_size, references, kind}.
"""
import collections
import glob
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys

from store import STORE, nar, nix32, path_hash

DEPENDENCIES = ("libc6", "bash", "perl-base", "python3.11-minimal")
REFERENCE = re.compile(rb"/nix/store/([0-9a-z]{32})-")
# Small files that stores hold besides packages: unit files, patches, wrappers, generated
# configuration.
SMALL_SUFFIXES = (".service", ".conf", ".sh", ".desktop", ".patch", ".cmake", ".pc", ".py", ".pm")
SMALL_PER_PACKAGE = 3


def unpack(deb, scratch):
    """The tree of a .deb, with usr/ merged to the top."""
    shutil.rmtree(scratch, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-x", deb, scratch], check=True)
    tree = {}
    _walk(scratch, tree)
    _merge(tree, tree.pop("usr", {}))
    shutil.rmtree(scratch)
    return tree


def _walk(path, tree):
    for entry in os.scandir(path):
        if entry.is_symlink():
            tree[entry.name] = ("l", os.readlink(entry.path))
        elif entry.is_dir():
            _walk(entry.path, tree.setdefault(entry.name, {}))
        elif entry.is_file():
            with open(entry.path, "rb") as file:
                tree[entry.name] = ("f", bool(entry.stat().st_mode & 0o111), file.read())


def _merge(into, other):
    for name, node in other.items():
        if isinstance(node, dict) and isinstance(into.get(name), dict):
            _merge(into[name], node)
        else:
            into[name] = node


def files(tree, prefix=""):
    for name, node in tree.items():
        if isinstance(node, dict):
            yield from files(node, f"{prefix}{name}/")
        elif node[0] == "f":
            yield prefix + name, node


def rewrite(node, substitutions):
    """Replaces what a Nix build would have replaced; the last substitution is /usr/ by the path's own prefix."""
    if isinstance(node, dict):
        return {name: rewrite(child, substitutions) for name, child in node.items()}
    if node[0] == "l":
        own = substitutions[-1][1].decode()
        return ("l", own + node[1][len("/usr/") :]) if node[1].startswith("/usr/") else node
    contents = node[2]
    for old, new in substitutions:
        contents = contents.replace(old, new)
    return ("f", node[1], contents)


def edit(tree, draw):
    """A local patch: the same few bytes put into two files."""
    candidates = sorted(path for path, node in files(tree) if len(node[2]) > 200)
    for path in draw.sample(candidates, min(2, len(candidates))):
        *folders, leaf = path.split("/")
        folder = tree
        for name in folders:
            folder = folder[name]
        _, executable, contents = folder[leaf]
        at = draw.randrange(len(contents))
        folder[leaf] = ("f", executable, contents[:at] + b"patched: local fix 4711\n" + contents[at:])


def small_files(package, tree):
    """Up to three small text files that become store paths of their own."""
    found = sorted(
        (path, node)
        for path, node in files(tree)
        if 40 < len(node[2]) < 20_000
        and (path.startswith(("etc/", "lib/systemd")) or path.endswith(SMALL_SUFFIXES))
    )
    return [(package, path, node) for path, node in found[:SMALL_PER_PACKAGE]]


class Generation:
    """One generation's store: its NARs on disk and its manifest."""

    known = {}  # hash part -> full path, over both generations: an edited path keeps its old references

    def __init__(self, folder, name):
        self.folder, self.name, self.manifest = folder, name, []
        shutil.rmtree(f"{folder}/{name}", ignore_errors=True)
        os.makedirs(f"{folder}/{name}")

    def base_name(self, package, version):
        shown = re.sub(r"[^A-Za-z0-9.+_-]", ".", re.sub(r"^[0-9]+:", "", version))
        base = f"{path_hash(f'{self.name}:{package}:{version}')}-{package}-{shown}"
        Generation.known[base[:32]] = STORE + base
        return base

    def small_name(self, package, path):
        leaf = re.sub(r"[^A-Za-z0-9.+_-]", "_", path.split("/")[-1]).lstrip(".")
        base = f"{path_hash(f'{self.name}:small:{package}:{path}')}-{leaf}"
        Generation.known[base[:32]] = STORE + base
        return base

    def set_dependencies(self, bases):
        self.libc, self.shell, self.perl, self.python = [(STORE + bases[name]).encode() for name in DEPENDENCIES]

    def substitutions(self, base):
        return [
            (b"#!/bin/sh", b"#!" + self.shell + b"/bin/sh"),
            (b"#! /bin/sh", b"#!" + self.shell + b"/bin/sh"),
            (b"#!/bin/bash", b"#!" + self.shell + b"/bin/bash"),
            (b"/usr/bin/perl", self.perl + b"/bin/perl"),
            (b"/usr/bin/python3", self.python + b"/bin/python3"),
            (b"/lib64/ld-linux-x86-64.so.2", self.libc + b"/lib/ld-linux-x86-64.so.2"),
            (b"libc.so.6", self.libc + b"/lib/libc.so.6"),
            (b"/usr/", STORE.encode() + base.encode() + b"/"),
        ]

    def add(self, base, tree, kind):
        name = f"{self.name}/{base}.nar"
        digest, size, references = hashlib.sha256(), 0, set()
        with open(f"{self.folder}/{name}", "wb") as out:

            def write(piece):
                nonlocal size
                out.write(piece)
                digest.update(piece)
                size += len(piece)
                for match in REFERENCE.findall(piece):
                    if path := Generation.known.get(match.decode()):
                        references.add(path)

            nar(tree, write)
        self.manifest.append(
            dict(
                store_path=STORE + base,
                hash=base[:32],
                nar=name,
                nar_hash_hex=digest.hexdigest(),
                nar_hash_nix32=nix32(digest.digest()),
                nar_size=size,
                references=sorted(references),
                kind=kind,
            )
        )

    def finish(self):
        with open(f"{self.folder}/{self.name}.json", "w") as out:
            json.dump(self.manifest, out, indent=1)
        sizes = sorted(entry["nar_size"] for entry in self.manifest)
        by_kind = collections.Counter()
        for entry in self.manifest:
            by_kind[entry["kind"]] += entry["nar_size"]
        print(
            f"{self.name}: {len(sizes)} paths, {sum(sizes) / 1e6:.1f} MB, median {sizes[len(sizes) // 2]}, largest {sizes[-1]};",
            {kind: f"{size / 1e6:.1f} MB" for kind, size in by_kind.items()},
        )


def main(folder):
    def deb(generation, name):
        found = glob.glob(f"{folder}/apt/{generation}/{name}_*.deb")
        return found[0] if found else None

    def version(path):
        return os.path.basename(path).split("_")[1].replace("%3a", ":")

    plan = []
    for entry in json.load(open(f"{folder}/plan.json")):
        first = deb("gen1", entry["gen1"][0])
        second = first if entry["gen1"] == entry["gen2"] else deb("gen2", entry["gen2"][0])
        if first and second:
            plan.append((entry, first, second))

    gen1, gen2 = Generation(folder, "gen1"), Generation(folder, "gen2")
    for generation in (gen1, gen2):
        debs = {entry["gen1"][0]: path for entry, path, _ in plan}
        generation.set_dependencies({name: generation.base_name(name, version(debs[name])) for name in DEPENDENCIES})

    draw = random.Random(7)
    small = []
    for entry, first, second in plan:
        kind, name = entry["kind"], entry["gen1"][0]
        tree = unpack(first, f"{folder}/unpacked")
        small += small_files(name, tree)
        base = gen1.base_name(name, version(first))
        gen1.add(base, rewrite(tree, gen1.substitutions(base)), "base")

        if second != first:
            tree = unpack(second, f"{folder}/unpacked")
        base = gen2.base_name(entry["gen2"][0], version(second))
        if kind == "edited":  # the inputs stay those of generation 1: only this path was built again
            tree = rewrite(tree, gen1.substitutions(base))
            edit(tree, draw)
        else:
            tree = rewrite(tree, gen2.substitutions(base))
        gen2.add(base, tree, kind)

    for number, (package, path, node) in enumerate(small):
        for generation in (gen1, gen2):
            if generation is gen2 and number % 4 == 0:
                continue  # a quarter does not come back
            base = generation.small_name(package, path)
            generation.add(base, rewrite(node, generation.substitutions(base)), "small")
    gen1.finish()
    gen2.finish()


main(*sys.argv[1:])
