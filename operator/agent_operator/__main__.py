"""`python -m agent_operator`: run the operator with the settings of the environment."""

import os
import sys

from agent_operator.app import main

if __name__ == "__main__":
    sys.exit(main(os.environ))
