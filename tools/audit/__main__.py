"""`python -m tools.audit`: judge a direction from files."""

from tools.audit.command import main

if __name__ == "__main__":
    raise SystemExit(main())
