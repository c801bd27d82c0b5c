"""`python -m keras_bn`: the `keras-bn` command."""

import sys

from keras_bn.cli import main

sys.exit(main())
