"""``python -m hitchhiker`` is the ``hitchhiker`` command."""

import sys

from hitchhiker.cli import main

if __name__ == "__main__":
    sys.exit(main())
