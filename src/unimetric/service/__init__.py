"""The search service: HTTP around a `SearchIndex`, and a web page. Needs the extra ``unimetric[search]``."""
