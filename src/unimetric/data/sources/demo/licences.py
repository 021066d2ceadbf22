"""Sources, authors and licences of the demo data: the text of its ``LICENSES.md``."""

from __future__ import annotations

from unimetric.data.sources.demo.packages import ICON_PACKS, licence_text
from unimetric.data.sources.demo.photographs import PHOTOGRAPHS

_HEAD = """# Sources, credits and licences of the demo data

This folder was built on this machine from files in installed Python packages. Everything was changed: icons and
glyphs were recoloured, turned, scaled and shifted; digits were enlarged; photographs were cut into regions, warped,
re-exposed, blurred and compressed. The names given here do not endorse this use. The statements below repeat what
the packages say about their content; where they say nothing, that is said. The licence texts that the packages ship
follow at the end.

## icons

| pack | by | licence | source |
|---|---|---|---|
| Font Awesome Free | @fontawesome, Fonticons, Inc. | CC BY 4.0 | https://fontawesome.com |
| Heroicons | Tailwind Labs | MIT | https://heroicons.com |
| Lucide | Lucide Contributors | ISC | https://lucide.dev |
| Material Icons | Google LLC | Apache-2.0 | https://github.com/google/material-design-icons |
| Material Design Icons (MDI) | Pictogrammers | Apache-2.0 | https://github.com/Templarian/MaterialDesign |
| Phosphor Icons | Phosphor Icons | MIT | https://github.com/phosphor-icons/core |

Packaged as `justmyresource-*` by Kaj Wik Siebert (MIT), drawn with resvg. The name of each file begins, after its
number, with its pack.

## glyphs

Pictures of characters in fonts that matplotlib bundles; no font is part of the demo data.

| fonts | by | licence |
|---|---|---|
| DejaVu | Bitstream, Inc. (Vera); Tavmjong Bah (Arev) | theirs, below; DejaVu's changes are in the public domain |
| STIX | the STI Pub Companies; MicroPress, Inc.; Elsevier, Inc. | SIL Open Font License 1.1 |
| Computer Modern (`cm*`), BaKoMa Fonts Collection | Basil K. Malyshev, after Donald E. Knuth | see here |

The Computer Modern fonts say "Copyright (C) 1994, Basil K. Malyshev. All Rights Reserved."; the package holds no
licence text for them.

## digits

Optical Recognition of Handwritten Digits, by E. Alpaydin and C. Kaynak, UCI Machine Learning Repository: a copy of
its test set comes with scikit-learn, which states no licence of its own for it.
https://archive.ics.uci.edu/ml/datasets/Optical+Recognition+of+Handwritten+Digits

## photographs

| classes | file | source and licence |
|---|---|---|
"""

_FLOWER = """
scikit-learn's note on the two CC BY 2.0 photographs names the photographer danielbuechele for both, but links the
flower to vultilion; the links are given here. Licence: https://creativecommons.org/licenses/by/2.0/

## Licence texts, as the packages ship them
"""

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
    photographs = "".join(
        f"| `{photograph.name}-*` | {photograph.package}: `{photograph.path}` | {photograph.credit} |\n"
        for photograph in PHOTOGRAPHS
    )
    texts = (
        f"\n### {package}: {name.rpartition('/')[2]}\n\n```text\n{text.strip()}\n```\n"
        for package, name in _TEXTS
        if (text := licence_text(package, name))
    )
    return _HEAD + photographs + _FLOWER + "".join(texts)
