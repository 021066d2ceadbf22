"""Build the demo data on the disk, once for each set of package versions."""

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL import Image

from unimetric.data.images import encode_image
from unimetric.data.sources.demo.digits import digit_drawings
from unimetric.data.sources.demo.drawing import Drawing
from unimetric.data.sources.demo.glyphs import glyph_drawings
from unimetric.data.sources.demo.icons import icon_drawings
from unimetric.data.sources.demo.packages import ICON_PACKS, licence_text, package_versions
from unimetric.data.sources.demo.photographs import PHOTOGRAPHS, photograph_drawings
from unimetric.files import cache_folder, explain_os_error, make_folder, write_json, write_text
from unimetric.progress import track

FORMAT = 3
"""Version of the demo data; increase it with every change to the drawings, so that old data is rebuilt."""

PAINTERS = {
    "digits": digit_drawings,
    "glyphs": glyph_drawings,
    "icons": icon_drawings,
    "photographs": photograph_drawings,
}
"""The domains, each of which becomes one dataset, and what draws them."""

DOMAINS = tuple(PAINTERS)

FINGERPRINT = "fingerprint.json"
LICENCES = "LICENSES.md"

_COVERS = (
    "SHA-256 over every image of the domain, sorted by path: its path as CLASS/FILE, width, height, and decoded RGB "
    "pixels. It does not cover the encoded bytes. Other versions of the packages may give other pixels."
)
# For the progress bar only.
_ABOUT = 1800
_TEXTS = (
    *((f"justmyresource-{pack}", f"/LICENSES/{pack.upper()}-LICENSE") for pack in ICON_PACKS),
    ("justmyresource-font-awesome", "/LICENSES/FONT-AWESOME-ATTRIBUTION"),
    ("justmyresource-material-icons", "/LICENSES/MATERIAL-ICONS-NOTICE"),
    ("matplotlib", "/LICENSE_DEJAVU"),
    ("matplotlib", "/LICENSE_STIX"),
    ("scikit-learn", "sklearn/datasets/images/README.txt"),
)
"""Packages, and the ends of the paths of their licence files."""


def build_demo(folder: Path | None = None) -> Path:
    """Build the demo data, by default in the user's cache folder, unless it exists.

    It is built in a temporary folder and then renamed, so that it is never incomplete. Of two processes, the second
    one waits and uses the result of the first.

    Returns:
        The folder ``demo-data-<key>``, where the key depends on the data's format and the packages' versions. It
        contains one folder per domain (`DOMAINS`) with class folders of images, ``fingerprint.json`` and
        ``LICENSES.md``.

    Raises:
        UserError: a package of the demo is not installed or lacks a file, or the folder cannot be written.
    """
    versions = package_versions()
    parent = cache_folder() if folder is None else folder
    root = parent / f"demo-data-{_key(versions)}"
    if is_complete(root):
        return root
    make_folder(parent)
    with explain_os_error(parent, "write to"), FileLock(parent / ".demo-data.lock"):
        if is_complete(root):
            return root
        # The lock is ours, so these are left over from a killed process.
        for leftover in parent.glob(".demo-data-*"):
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=".demo-data-", dir=parent) as temporary:
            # A folder within it, since the temporary one is closed to other users, who may share the cache.
            built = make_folder(Path(temporary) / "built")
            _fill(built, versions)
            shutil.rmtree(root, ignore_errors=True)
            built.rename(root)
    return root


def is_complete(root: Path) -> bool:
    """Return true if ``root`` holds demo data with the number of images in its fingerprint."""
    try:
        record = json.loads((root / FINGERPRINT).read_text(encoding="utf-8"))
        return bool(
            (root / LICENCES).is_file()
            and all(record["domains"][domain]["images"] == _count(root / domain) for domain in DOMAINS)
        )
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _key(versions: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps([FORMAT, versions], sort_keys=True).encode()).hexdigest()[:12]


def pixel_fingerprint(domain: Path) -> str:
    """Return the SHA-256, in hexadecimal, of the pixels in a folder of class folders; `_COVERS` has the definition."""
    digest = hashlib.sha256()
    for path in sorted(domain.glob("*/*"), key=lambda path: path.relative_to(domain).as_posix()):
        with Image.open(path) as file:
            picture = file.convert("RGB")
        digest.update(f"{path.relative_to(domain).as_posix()}\0{picture.width}\0{picture.height}\0".encode())
        digest.update(picture.tobytes())
    return digest.hexdigest()


def _count(domain: Path) -> int:
    # Without opening a file: this runs before every command that reads the demo data.
    return sum(1 for label in domain.iterdir() for _ in label.iterdir())


def _fill(root: Path, versions: dict[str, str]) -> None:
    pictures = ((domain, drawing) for domain, paint in PAINTERS.items() for drawing in paint())
    drawn: dict[str, Counter[str]] = {domain: Counter() for domain in DOMAINS}
    for domain, drawing in track(pictures, "building the demo data", total=_ABOUT):
        drawn[domain][drawing.label] += 1
        _save(drawing, root / domain / drawing.label, drawn[domain][drawing.label])
    write_text(root / LICENCES, _licences())
    domains: dict[str, Any] = {
        domain: {"classes": len(counts), "images": counts.total(), "sha256": pixel_fingerprint(root / domain)}
        for domain, counts in drawn.items()
    }
    # Written last, because its presence marks the data as complete.
    write_json(root / FINGERPRINT, {"format": FORMAT, "covers": _COVERS, "packages": versions, "domains": domains})


def _save(drawing: Drawing, folder: Path, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{number:02d}-{drawing.origin}"
    if drawing.jpeg_quality is None:
        (folder / f"{stem}.png").write_bytes(encode_image(drawing.draw(), "PNG"))
    else:
        (folder / f"{stem}.jpg").write_bytes(encode_image(drawing.draw(), "JPEG", quality=drawing.jpeg_quality))


def _licences() -> str:
    """Return sources, authors and licences of the demo data, in Markdown."""
    from jinja2 import Template

    texts = [
        (package, name.rpartition("/")[2], text.strip())
        for package, name in _TEXTS
        if (text := licence_text(package, name))
    ]
    content = (resources.files(__package__) / "licences.md.j2").read_text(encoding="utf-8")
    template = Template(content, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    rendered: str = template.render(photographs=PHOTOGRAPHS, texts=texts)
    return rendered
