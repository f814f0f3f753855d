"`python -m classimpression` is the command `classimpression`."

from classimpression.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
