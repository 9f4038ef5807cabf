"""`python -m upi_trm` is `upi-trm`."""

from upi_trm.cli import main

if __name__ == "__main__":
    main()
