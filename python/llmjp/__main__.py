"""`python -m llmjp`: the command line, as the installed command `llmjp` runs it."""

from llmjp.cli import run_alone

if __name__ == "__main__":
    run_alone()
