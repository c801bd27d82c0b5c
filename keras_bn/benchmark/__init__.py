"""How fast the layer is here, next to its peers: `python -m keras_bn.benchmark`.

Each case runs this package's layer, Keras's and the framework's own in turns, A B C
A B C, so that what else the machine does falls on all of them; medians are reported.
"""

from keras_bn.benchmark.layer import Case, Missing, Result, Row, run_case
from keras_bn.benchmark.measure import Timing, interleaved

__all__ = ["Case", "Missing", "Result", "Row", "Timing", "interleaved", "run_case"]
