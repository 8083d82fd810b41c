"""The recipes: scripts to launch, installed as `ssdd_hub.recipes`."""

import sys
from pathlib import Path

# Scripts find their neighbours by themselves, and this package's modules do so here; last, to hide no other package.
sys.path.append(str(Path(__file__).parent))
