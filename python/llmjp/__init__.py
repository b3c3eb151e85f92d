"""Trainer and generator for the LLM-jp v1.0 models, thin layers over llmjp_ext.

`llmjp --help` lists the commands; docs/DESIGN.md says what is where.
"""

from llmjp_ext import __version__ as __version__
