"""omni: speak, and a language model answers by voice while it is still thinking."""

__version__ = "0.1.0"
