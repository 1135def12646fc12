"""Training on rented machines of Hugging Face (Jobs): what is sent, the jobs, and how their output comes home."""

import importlib.util
import sys

if importlib.util.find_spec("huggingface_hub") is None:
    raise SystemExit(f"error: {sys.executable} lacks the package huggingface_hub; `make train` installs it")
