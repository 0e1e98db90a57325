"""The deploy worker: answers with one base model and any of its adapters.

Reading order: `__main__` (the process), `engine` (base, adapters, turns), `answer`, `pieces` (text), `choose` (tokens).
"""
