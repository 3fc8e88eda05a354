"""Lets `python -m guardrail_sdk` stand for `guardrail`."""

import sys

from guardrail_sdk.cli import main

if __name__ == "__main__":
    sys.exit(main())
