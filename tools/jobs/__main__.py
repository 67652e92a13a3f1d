"""`python -m tools.jobs`: many independent jobs, here or on a Dask cluster."""

from tools.jobs.command import main

if __name__ == "__main__":
    raise SystemExit(main())
