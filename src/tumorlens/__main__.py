"""`python -m tumorlens`, and thereby `torchrun -m tumorlens`."""

import sys

from tumorlens.cli import main

if __name__ == "__main__":
    sys.exit(main())
