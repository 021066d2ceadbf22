"""The demo data: icons, glyphs, handwritten digits and photographs, made from packages that pip installs.

Four small collections of different kinds, so that a laptop without a model or data hub can train one
embedding model on several domains. One module draws each domain; `build` writes them to the disk, once per
user. ``docs/demo-data.md`` describes the data and the meaning of numbers on it.
"""

from unimetric.data.sources.demo.build import DOMAINS, build_demo, pixel_fingerprint

__all__ = ["DOMAINS", "build_demo", "pixel_fingerprint"]
