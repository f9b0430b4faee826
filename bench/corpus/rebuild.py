#!/usr/bin/env python3
"""rebuild.py DIR FROM TO: a mass rebuild of generation FROM as TO.

Every store path gets another hash, and the NARs differ in nothing but those hashes: what a change at the bottom of a
package set does to everything above it.
"""
import hashlib
import json
import os
import sys

from store import STORE, nix32, path_hash


def main(folder, source, target):
    manifest = json.load(open(f"{folder}/{source}.json"))
    paths = {entry["store_path"] for entry in manifest} | {path for entry in manifest for path in entry["references"]}
    old_hash = lambda path: path[len(STORE) : len(STORE) + 32]
    new_hash = {old_hash(path): path_hash(target + path) for path in paths}
    renamed = lambda path: STORE + new_hash[old_hash(path)] + path[len(STORE) + 32 :]

    os.makedirs(f"{folder}/{target}", exist_ok=True)
    rebuilt = []
    for entry in manifest:
        with open(f"{folder}/{entry['nar']}", "rb") as file:
            contents = file.read()
        for path in {entry["store_path"], *entry["references"]}:
            contents = contents.replace(old_hash(path).encode(), new_hash[old_hash(path)].encode())
        path = renamed(entry["store_path"])
        name = f"{target}/{path[len(STORE):]}.nar"
        with open(f"{folder}/{name}", "wb") as out:
            out.write(contents)
        digest = hashlib.sha256(contents).digest()
        rebuilt.append(
            dict(
                entry,
                store_path=path,
                hash=old_hash(path),
                nar=name,
                nar_hash_hex=digest.hex(),
                nar_hash_nix32=nix32(digest),
                references=sorted(map(renamed, entry["references"])),
            )
        )
    with open(f"{folder}/{target}.json", "w") as out:
        json.dump(rebuilt, out, indent=1)
    print(f"{target}: {len(rebuilt)} paths")


main(*sys.argv[1:])
