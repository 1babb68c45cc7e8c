# What looks at the pages, from npm: TypeScript reads their scripts (plain JavaScript), and with axe-core the tests ask
# whether everybody can use them. Nothing of it is in the pages.
.PHONY: npm-env

npm-env: $(VENV)/installed-npm

$(VENV)/installed-npm: make/pages.mk | $(VENV)/installed
	@command -v npm > /dev/null || { echo "npm is not here, which brings what checks the pages: apt-get install npm"; exit 1; }
	npm install --silent --no-audit --no-fund --no-save --no-package-lock --prefix $(VENV) typescript@5.9.3 axe-core@4.14.1
	touch $@
