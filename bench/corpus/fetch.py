#!/usr/bin/env python3
"""fetch.py DIR: downloads the planned packages to DIR/apt/gen1 and DIR/apt/gen2 (apt verifies them); needs APT_CONFIG."""
import json
import os
import subprocess
import sys

BATCH = 40  # packages a call: apt reads its lists once per call, but one missing version fails the whole call


def download(folder, wanted):
    os.makedirs(folder, exist_ok=True)
    os.chmod(folder, 0o777)  # apt fetches as its own user
    specs = sorted({name if version is None else f"{name}={version}" for name, version in wanted})
    get = lambda batch: subprocess.run(["apt-get", "download", "-q", *batch], cwd=folder, capture_output=True).returncode == 0
    for start in range(0, len(specs), BATCH):
        batch = specs[start : start + BATCH]
        if not get(batch):
            for spec in batch:
                if not get([spec]):
                    print("could not be fetched, left out:", spec)


def main(folder):
    plan = json.load(open(f"{folder}/plan.json"))
    download(f"{folder}/apt/gen1", [entry["gen1"] for entry in plan])
    download(f"{folder}/apt/gen2", [entry["gen2"] for entry in plan if entry["gen2"] != entry["gen1"]])


main(*sys.argv[1:])
