"""From sources to notebooks and chapters."""
