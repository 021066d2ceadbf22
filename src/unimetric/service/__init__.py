"""The search service: HTTP around a `SearchIndex`, and a web page. Needs the extra ``unimetric[search]``.

- `app`: `create_app`
- `routes`: one router for each part of the API, and the page
- `schemas`, `catalogue_schemas`: requests and answers
- `failures`: errors in one shape
- `guard`: checks and headers of every request
- `uploads`: bodies, received and parsed within limits
- `pictures`: an upload's bytes decoded to an image
- `batching`: the thread that runs the model
- `work`: places, threads and deadlines
- `folder`: a served folder of images, indexed in the background
- `state`: objects that the routes share
- `telemetry`: metrics for Prometheus
- `options`: `ServiceConfig`, without a heavy import
- `connections`: limits of one client's connection
- `run`: listening, and stopping in good order
- `page`: the web page's files
"""
