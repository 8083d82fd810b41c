"""What pyproject.toml cannot say: recipes/ is installed as ssdd_hub.recipes, so that the scripts exist once."""

from setuptools import find_packages, setup

RECIPES = ["ssdd_hub.recipes", "ssdd_hub.recipes.studies"]

setup(
    packages=[*find_packages("src"), *RECIPES],
    package_dir={"": "src", "ssdd_hub.recipes": "recipes"},
)
