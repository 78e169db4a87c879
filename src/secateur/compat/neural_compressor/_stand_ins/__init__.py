"""Create layers from the weights in files, for pattern classes that read layers."""
