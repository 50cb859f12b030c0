"""What the ranks of test_ranks.py run: `python -m models.gpt2`, with models of a few thousand parameters."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from models.command import main
from tests.models.test_train import Micro

if __name__ == "__main__":
    main(Micro, sys.argv[1:])
