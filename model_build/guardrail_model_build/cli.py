"""`guardrail-build`: make a guard model by a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

from pydantic import ValidationError

from guardrail_model_build.pipeline import STAGES, build
from guardrail_model_build.recipe import Recipe
from guardrail_model_build.workspace import Workspace


def main(argv: list[str] | None = None) -> None:
    """Run a build; stages that are done are not run again."""
    parser = argparse.ArgumentParser(
        prog="guardrail-build",
        description="Make a guard model by a recipe: prune, distil, quantise, export, pack.",
        epilog="A stopped build goes on where it was: give the same command again.",
    )
    parser.add_argument("recipe", type=Path, help="a recipe file (YAML)")
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="folders of labelled rows"
    )
    parser.add_argument("--base", help="folder, hub id or .gguf file, instead of the recipe's")
    parser.add_argument("--out", type=Path, required=True, help="folder for the stages' results")
    parser.add_argument("--until", choices=list(STAGES), help="stop after this stage")
    parser.add_argument(
        "--eval",
        type=Path,
        nargs="*",
        default=[],
        help="files of labelled rows to report the result on; never trained on",
    )
    arguments = parser.parse_args(argv)
    try:
        recipe = Recipe.load(arguments.recipe)
    except ValidationError as error:
        raise SystemExit(f"{arguments.recipe}: {error}") from error
    if arguments.base:
        source = recipe.base.model_copy(update={"source": arguments.base})
        recipe = recipe.model_copy(update={"base": source})
    workspace = Workspace(
        recipe=recipe,
        data=tuple(arguments.data),
        evaluation=tuple(arguments.eval),
        folder=arguments.out,
    )
    build(workspace, until=arguments.until)


if __name__ == "__main__":
    main()
