"""What `make doctor ARGS=--json` prints is one document that fits its schema."""

from __future__ import annotations

import json
import subprocess
import sys

import jsonschema

from control.paths import ROOT, SCHEMAS


def test_the_document_fits_its_schema() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "control.launch.doctor", "--json"],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    document = json.loads(done.stdout)
    jsonschema.Draft202012Validator(json.loads((SCHEMAS / "doctor.json").read_bytes())).validate(document)
    assert document["can_start"] == (done.returncode == 0)
    assert {"Python", "QEMU", "KVM"} <= {check["name"] for check in document["checks"]}
