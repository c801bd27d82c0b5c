"""Weights of another library's model: which layer is which, and how they get here."""
