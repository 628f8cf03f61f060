"""The study on polyphonic music is in ``examples/polyphonic_music`` of the source repository."""

import sys

if __name__ == "__main__":
    print("moved: PYTHONPATH=examples python -m polyphonic_music", file=sys.stderr)
    sys.exit(2)
