"""Sources, authors and licences of the demo data: the text of its ``LICENSES.md``."""

from importlib import resources

from jinja2 import Template

from unimetric.data.sources.demo.packages import ICON_PACKS, licence_text
from unimetric.data.sources.demo.photographs import PHOTOGRAPHS

_TEXTS = (
    *((f"justmyresource-{pack}", f"/LICENSES/{pack.upper()}-LICENSE") for pack in ICON_PACKS),
    ("justmyresource-font-awesome", "/LICENSES/FONT-AWESOME-ATTRIBUTION"),
    ("justmyresource-material-icons", "/LICENSES/MATERIAL-ICONS-NOTICE"),
    ("matplotlib", "/LICENSE_DEJAVU"),
    ("matplotlib", "/LICENSE_STIX"),
    ("scikit-learn", "sklearn/datasets/images/README.txt"),
)


def licences() -> str:
    """Return the text, in Markdown.

    Raises:
        PackageNotFoundError: a package is not installed.
    """
    texts = [
        (package, name.rpartition("/")[2], text.strip())
        for package, name in _TEXTS
        if (text := licence_text(package, name))
    ]
    content = (resources.files(__package__) / "licences.md.j2").read_text(encoding="utf-8")
    template = Template(content, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    rendered: str = template.render(photographs=PHOTOGRAPHS, texts=texts)
    return rendered
