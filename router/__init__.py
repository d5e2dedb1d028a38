"""lastmile: a software edge router for private cloud interconnects."""

__version__ = "0.1.0"
