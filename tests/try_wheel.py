"""Install a wheel in an empty environment outside the checkout, and run what a new user runs there.

    python tests/try_wheel.py dist/unimetric-0.1.0-py3-none-any.whl

The demo is a short form: a few steps at 28 px, with the same stages.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

SHORT_DEMO = """
model: {backbone: dinov2-small, image_size: 28, embedding_size: 32, method: puma}
loss: {name: curricularface}
training: {steps: 4, batch_size: 8}
"""


def main() -> int:
    """Install and run; the first command that fails ends it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--extras", default="demo,search")
    options = parser.parse_args()
    wheel = options.wheel.resolve(strict=True)
    with tempfile.TemporaryDirectory(prefix="unimetric-wheel-") as name:
        place = Path(name)
        venv.create(place / "empty", with_pip=True)
        programs = place / "empty" / ("Scripts" if os.name == "nt" else "bin")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        environment["UNIMETRIC_CACHE"] = str(place / "cache")

        def run(*command: object) -> str:
            print("$", *command, flush=True)
            ended = subprocess.run(
                list(map(str, command)), cwd=place, env=environment, stdout=subprocess.PIPE, text=True
            )
            if ended.returncode:
                raise SystemExit(f"{' '.join(map(str, command))} ended with {ended.returncode}")
            return ended.stdout

        unimetric = programs / "unimetric"
        run(
            programs / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            f"{wheel}[{options.extras}]",
        )
        version = run(unimetric, "--version")
        if wheel.name.split("-")[1] not in version:
            raise SystemExit(f"--version is {version!r}, the wheel is {wheel.name}")
        run(unimetric, "serve", "--help")
        (place / "short.yaml").write_text(SHORT_DEMO, encoding="utf-8")
        print(run(unimetric, "demo", "--config", "short.yaml", "--out", "run"))
        for written in ("metrics.json", "report.html", "catalogue.db", "model/adapter.safetensors"):
            if not (place / "run" / written).exists():
                raise SystemExit(f"the demo wrote no {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
