"""Tunesmith: fine-tune open LLMs, with the evidence that the result is better."""

__version__ = "0.1.0"
