"""Pretrained networks by name or as a module, their features computed once, and statistics that fit a budget."""
