"""The version of this release."""

# A literal: reading the installed metadata costs 25 ms.
__version__ = "0.1.0"
