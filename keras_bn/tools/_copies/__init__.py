"""Copies of a model, or of a layer, with others in the place of chosen ones."""
