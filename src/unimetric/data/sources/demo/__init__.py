"""The demo data: icons, glyphs, handwritten digits and photographs, made from what pip installs.

Four small collections of different kinds, so that a laptop without a model or data hub can train one
embedding model on several domains. One module draws each domain; `build` puts them on the disk, once per
user. What the data is, and what numbers on it mean, is in ``docs/demo-data.md``.
"""

from __future__ import annotations

from unimetric.data.sources.demo.build import DOMAINS, build_demo, pixel_fingerprint

__all__ = ["DOMAINS", "build_demo", "pixel_fingerprint"]
