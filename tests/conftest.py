"""Before anything else: no test reaches a model hub."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
