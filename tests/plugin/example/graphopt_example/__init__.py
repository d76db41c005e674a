"""A plugin for graphopt. Its passes and its target are found through the entry points in pyproject.toml."""
