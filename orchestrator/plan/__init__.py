"""Which devices run which layers: pure functions from a survey and a model to a plan."""
