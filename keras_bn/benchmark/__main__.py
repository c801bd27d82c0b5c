"""`python -m keras_bn.benchmark`."""

import sys

from keras_bn.benchmark.command import main

sys.exit(main())
