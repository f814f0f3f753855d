"""Pretrained networks by name or as a module, their features computed once, and statistics of them that fit a budget."""
