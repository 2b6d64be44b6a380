"""`python -m upvit_core`: the same verbs as the studio, without a browser."""

from upvit_core.cli import main

if __name__ == "__main__":
    main()
