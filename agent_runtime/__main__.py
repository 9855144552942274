"""`python -m agent_runtime`: serve the agents of the manifest, as a pod does."""

import sys

from agent_runtime.app import main

sys.exit(main())
