"""EleutherAI's harness, under the name that users know: `python -m cdlearn.harness`, see `cdlearn.evaluate.harness`."""

from cdlearn.evaluate.harness import *  # noqa: F403
from cdlearn.evaluate.harness import main

if __name__ == "__main__":
    main()
