"""The container image that every compiled step names."""

import os

from narrowcast import __version__

IMAGE = os.environ.get("NARROWCAST_IMAGE", f"narrowcast:{__version__}")
