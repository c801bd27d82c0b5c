"""Moments of data that passes through a model, and what layers keep of them."""
