"""Where the weights of a model are stored while it is pruned: in memory, on a device, or in files."""

__all__: list[str] = []
