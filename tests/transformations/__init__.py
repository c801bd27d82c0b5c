"""What test_transformations.py is made of.

- `scenes`: what is transformed, and what the float64 oracle says it must give;
- `rows`: the table of transformations;
- one module a framework: how its own tools do each of them.
"""
