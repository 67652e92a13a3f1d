"""`python -m helpers.audit`: judge a direction from files."""

from helpers.audit.command import main

if __name__ == "__main__":
    raise SystemExit(main())
