"""What a device is and what runs on it: facts, budgets, engine recipes, commands and the agent.

Knows nothing of `orchestrator` or `quant`; apart from `agent.py`, everything here takes values and returns values.
"""
