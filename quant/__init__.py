"""What a model is: GGUF facts, bytes per layer, the catalogue and fetching.

Knows nothing of `orchestrator` or `workers`.
"""
