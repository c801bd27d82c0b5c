"""Scale and offset of a batch norm, multiplied into the layers around it."""
