"""The search service: HTTP around a `SearchIndex`, and a web page. Needs the extra ``unimetric[search]``.

- `app`: `create_app`, the routes
- `schemas`: what comes in and goes out
- `failures`: errors, all in one shape
- `uploads`: bodies that are read and parsed within limits
- `pictures`: from an upload's bytes to the model's pixels, or words
- `batching`: one thread that runs the model on what has gathered
- `state`: what the routes share
- `work`: a request's way through threads, within its time, for as long as its client waits
- `guard`: what holds for every request: names, headers, numbers
- `telemetry`: the numbers for Prometheus
- `page`: the web page's files
- `run`: listening, and stopping in good order
"""

from __future__ import annotations

from unimetric.service.app import create_app

__all__ = ["create_app"]
