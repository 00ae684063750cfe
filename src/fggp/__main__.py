"""``python -m fggp``, and ``torchrun -m fggp``."""

import os
import sys

from fggp.lab.cli import main

if __name__ == "__main__":
    code = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # All is written, and the ranks have parted. While the interpreter shuts down, gloo's threads abort a rank now
        # and then ("terminate called without an active exception", in PyTorch 2.15), and torchrun reports a failure.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
