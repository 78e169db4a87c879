"""Remove units that span several layers: channels, attention heads and residual branches."""

__all__: list[str] = []
