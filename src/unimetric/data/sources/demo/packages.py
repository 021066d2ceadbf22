"""Packages that the demo data is made of: their versions, and files in them.

Files are found through the installed metadata, without importing a package: some take seconds to import, and
the icon packs' own code needs a library that is not installed here.
"""

from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from unimetric.errors import UserError

ICON_PACKS = ("font-awesome", "heroicons", "lucide", "material-icons", "mdi", "phosphor")
"""The icon packs; the package of each is ``justmyresource-<pack>``."""

PACKAGES = (
    *(f"justmyresource-{pack}" for pack in ICON_PACKS),
    "matplotlib",
    "numpy",
    "pillow",
    "resvg-py",
    "scikit-image",
    "scikit-learn",
)
"""Every package whose version can change a pixel of the demo data."""

REMEDY = "run: pip install '.[demo]' in the checkout of unimetric"


def package_versions() -> dict[str, str]:
    """Return the installed version of every package in `PACKAGES`; a `UserError` if a package is not installed."""
    found = {name: _version(name) for name in PACKAGES}
    if missing := [name for name, number in found.items() if number is None]:
        raise UserError(f"the demo data needs packages that are not installed: {', '.join(missing)}; {REMEDY}")
    return {name: number for name, number in found.items() if number is not None}


def package_file(package: str, path: str) -> Path:
    """Return a file of an installed distribution by its path below site-packages; a `UserError` if it is missing."""
    try:
        found = Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError as error:
        raise UserError(f"the demo data needs the package {package}, which is not installed; {REMEDY}") from error
    if not found.is_file():
        raise UserError(f"the installed package {package} lacks {path}, which the demo data needs; {REMEDY}")
    return found


def licence_text(package: str, name: str) -> str:
    """Return the text of a licence file that a package ships, by the end of its path; empty if there is none."""
    for file in distribution(package).files or ():
        if file.as_posix().endswith(name):
            return Path(str(file.locate())).read_text(encoding="utf-8", errors="replace")
    return ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
