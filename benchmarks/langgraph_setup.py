"""Makes the Python environment of the LangGraph contestant: `python -m benchmarks.langgraph_setup`.

It lies in `benchmarks/.venv`, apart from the product's own: nothing of it is ever installed with the product.
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent
ENVIRONMENT: Final = FOLDER / ".venv"
REQUIREMENTS: Final = FOLDER / "langgraph_requirements.txt"


def find_python(wanted: Path | None = None) -> Path | None:
    """Return the interpreter that has LangGraph: the wanted one, or the environment's if it was made."""
    python = wanted or ENVIRONMENT / "bin" / "python"
    return python if python.exists() else None


def main() -> None:
    """Make the environment, or bring it up to date."""
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    python = ENVIRONMENT / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", str(REQUIREMENTS)], check=True)
    (ENVIRONMENT / ".gitignore").write_text("*\n")
    print(f"ready: {python}")


if __name__ == "__main__":
    main()
