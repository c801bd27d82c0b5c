"""What test_transformations.py is made of.

- `scenes`: what is transformed, in its several settings;
- `call`: it, ready to be called, by the layer or by the pure functions;
- `expected`: what the float64 oracle says that must come out;
- `rows`: the table of transformations;
- `in_<backend>`: how the framework's own tools do each of them;
- `keras_own`: the rows that Keras's own layer breaks.
"""
