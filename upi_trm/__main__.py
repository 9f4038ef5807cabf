"""`python -m upi_trm` is `upi-trm`."""

import sys

from trm.experiments.cli import main

if __name__ == "__main__":
    sys.argv[0] = "upi-trm"  # what a run records as its command
    main()
