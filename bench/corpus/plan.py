#!/usr/bin/env python3
"""plan.py DIR PACKAGES: decides which version of each package goes into which generation, and writes DIR/plan.json.

Generation 1 is Debian 12's main archive. Generation 2 is what a nixpkgs update brings: packages that security
support updated, some that moved to Debian 13's version, a few with a local edit, and the rest rebuilt with other
dependency hashes only. The choice hangs on a hash of the name, so it is the same on every machine.
"""
import collections
import hashlib
import json
import re
import subprocess
import sys

# Every path refers to these packages, so they change only their hash: a new libc version would make
# a different corpus.
ALWAYS_REBUILT = ("libc6", "bash", "perl-base", "python3.11-minimal")
# Of 256 hash values: below the first number, the package gets a small edit; from there to the
# second, Debian 13's version.
EDITED_BELOW, UPDATED_BELOW = 26, 170


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def versions(names):
    """{package: {suite: newest version}}"""
    found = collections.defaultdict(dict)
    for line in run("apt-cache", "madison", *names).splitlines():
        package, version, source = [field.strip() for field in line.split("|")]
        if "Sources" in source:
            continue
        suite = "security" if "security" in source else "bookworm" if "bookworm" in source else "trixie"
        found[package].setdefault(suite, version)
    return found


def plan_package(name, suites):
    base = suites.get("bookworm") or suites.get("security")
    if not base:
        return None
    security, trixie = suites.get("security"), suites.get("trixie")
    draw = hashlib.sha256(name.encode()).digest()[0]
    if name in ALWAYS_REBUILT:
        kind, update = "rebuilt", base
    elif security and security != base:
        kind, update = "security", security
    elif draw < EDITED_BELOW:
        kind, update = "edited", base
    elif trixie and trixie != base and draw < UPDATED_BELOW:
        kind, update = "updated", trixie
    else:
        kind, update = "rebuilt", base
    return dict(kind=kind, gen1=(name, base), gen2=(name, update))


def plan_kernel_headers():
    """Two neighbouring kernel ABIs: large trees of small files, nearly equal, under different package names."""
    names = run("apt-cache", "pkgnames", "linux-headers-6.1.0-").split()
    abis = sorted(int(m[1]) for m in (re.fullmatch(r"linux-headers-6\.1\.0-(\d+)-common", n) for n in names) if m)
    if len(abis) < 2:
        return None
    first, second = [(f"linux-headers-6.1.0-{abi}-common", None) for abi in abis[-2:]]
    return dict(kind="next-abi", gen1=first, gen2=second)


def main(folder, package_list):
    names = [word for line in open(package_list) if not line.startswith("#") for word in line.split()]
    available = versions(names)
    for name in names:
        if name not in available:
            print("not in the archive any more:", name)
    plan = [plan_package(name, available[name]) for name in names if name in available] + [plan_kernel_headers()]
    plan = [entry for entry in plan if entry]
    print("plan:", dict(collections.Counter(entry["kind"] for entry in plan)))
    with open(f"{folder}/plan.json", "w") as out:
        json.dump(plan, out, indent=1)


main(*sys.argv[1:])
