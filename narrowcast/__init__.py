"""narrowcast: reproducible training, compression and serving of recommendation models."""

__version__ = "0.1.0"
