"""Release the commit that is checked out: `make release`, from the root of the project.

    python -m tests.release [--dry] PYTHON...

Wheel, sdist, SHA256SUMS and NOTES.md (the section of the changelog) come to `dist/` once each
package has been proved with each Python. Until then, and with `--dry`, they are in
`build/release/packages`, beside the logs of all that is run.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from tests.release.installed import prove, run_tests
from tests.release.packages import build
from tests.release.shell import Failed
from tests.release.state import git, newest_section, refusals

ROOT = Path(__file__).parents[2]
DIST, WORK = ROOT / "dist", ROOT / "build" / "release"


def main() -> int:
    """Check, build, prove. The exit status is 1 if a step failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pythons", nargs="+", metavar="PYTHON")
    parser.add_argument("--dry", action="store_true", help="the changelog may lack the date")
    options = parser.parse_args()
    reasons = refusals(ROOT, options.dry)
    reasons += [
        f"{python} does not run: install it, or name others, make release PYTHONS=..."
        for python in options.pythons
        if not runs(python)
    ]
    if reasons:
        print("\n".join(reasons), file=sys.stderr)
        return 1
    for folder in (WORK,) if options.dry else (WORK, DIST):
        shutil.rmtree(folder, ignore_errors=True)
    (WORK / "packages").mkdir(parents=True)
    try:
        release(options.pythons, options.dry)
    except Failed as failed:
        print(failed, file=sys.stderr)
        return 1
    return 0


def runs(python: str) -> bool:
    """Whether an interpreter is there; pyenv's stand-ins are, but fail."""
    try:
        return not subprocess.run([python, "--version"], capture_output=True).returncode
    except FileNotFoundError:
        return False


def release(pythons: list[str], dry: bool) -> None:
    """Build the packages, prove each with each Python, and move them to `dist/`.

    Raises
    ------
    Failed
        If any of it failed; after a package that fails, the others are proved all the same.
    """
    section = newest_section((ROOT / "CHANGELOG.md").read_text())
    print(f"{section.version} ({section.note}), commit {git(ROOT, 'rev-parse', '--short', 'HEAD')}")
    (WORK / "packages" / "NOTES.md").write_text(section.text)
    wheel, sdist = build(ROOT, WORK / "packages", WORK / "build.log")
    print(f"{wheel.name}, {sdist.name}: built twice, the same bytes")
    jobs = {f"tests of {sdist.name}": partial(run_tests, sdist, WORK / "sdist-tests.log")}
    for python in pythons:
        for kind, package in (("wheel", wheel), ("sdist", sdist)):
            log = WORK / f"{Path(python).name}-{kind}.log"
            job = partial(prove, python, package, section.version, ROOT, log)
            jobs[f"{python} {kind}"] = job
    faults = []
    for name, job in jobs.items():
        begin = time.monotonic()
        try:
            told = job()
        except Failed as failed:
            told = str(failed)
            faults.append(name)
        print(f"{name:<32}{time.monotonic() - begin:6.0f} s  {told}")
    if faults:
        raise Failed(f"Not released, by {len(faults)} of {len(jobs)}: {', '.join(faults)}.")
    if dry:
        print(f"A dry run: nothing is released. The packages are in {WORK / 'packages'}.")
    else:
        (WORK / "packages").rename(DIST)
        print(f"To be kept with the tag v{section.version}: all of {DIST}.")


if __name__ == "__main__":
    sys.exit(main())
