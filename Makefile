.DEFAULT_GOAL := help
.PHONY: format check test test-slow help

format:  ## put the code in shape and mend what ruff can mend
	python -m ruff check --fix .
	python -m ruff format .

check:  ## lint, format and types, changing nothing
	python -m ruff check .
	python -m ruff format --check .
	python -m mypy

test:  ## the default tests, minutes on two cores
	python -m pytest -n 2 --dist loadfile

test-slow:  ## the tests marked slow
	python -m pytest -m slow

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
