# The documentation site. Its tools live in an environment of their own: they read the sources and import nothing of kad.
SITE_VENV ?= .venv-docs
SITE_PACKAGES := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")

.PHONY: site site-env

site-env: $(SITE_VENV)/installed

# NO_MKDOCS_2_WARNING: the theme warns on every build about MkDocs 2, which pyproject.toml rules out.
site: $(SITE_VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(SITE_VENV)/bin/mkdocs build --strict
	@echo "The site is in site/. Open site/index.html."

$(SITE_VENV)/installed: pyproject.toml make/site.mk
	test -x $(SITE_VENV)/bin/python || $(PYTHON) -m venv $(SITE_VENV)
	$(PYTHON) -c '$(SITE_PACKAGES)' > $(SITE_VENV)/requirements.txt
	$(SITE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $(SITE_VENV)/requirements.txt
	touch $@
