# Everything that a developer, a user or CI does with a checkout. Needs python3 (3.11 to 3.14), make
# and git; no compiler. Recipes use relative paths and quotes: a checkout may lie in "My Projects/".

.DEFAULT_GOAL := help
SHELL := /bin/sh
PY := .venv/bin/python
PIP := "$$(ls .ci/pip-*-py3-none-any.whl)/pip"
LOCKED := --quiet --disable-pip-version-check --no-input --no-deps
JOBS ?= 4
SIZE ?= small
UV ?= uv

.PHONY: help
help:
	@echo 'make demo      the main job on three nodes of its own, in under a minute'
	@echo 'make install   p2pstore into ~/.local, with an environment of its own'
	@echo 'make test      everything that CI runs'
	@echo 'make bench     speed and memory, beside restic and borg where installed; SIZE=small|full'
	@echo 'make simulate  years of churn against the real policy: what is lost, with how many copies'
	@echo 'make faults    hours of kills, power cuts, bad disks and liars: what is lost of your files'
	@echo 'make env       the environment .venv alone;  make format  tidies the source'
	@echo 'make lock      the lock files anew from pyproject.toml (needs uv)'

.PHONY: env
env:
	@sh .ci/env.sh .venv .ci/requirements.lock
	@if [ pyproject.toml -nt .venv/.p2pstore-checkout ] || ! [ -x .venv/bin/p2pstore ]; then \
	    "$(PY)" $(PIP) install $(LOCKED) --no-build-isolation --editable . && \
	    touch .venv/.p2pstore-checkout; \
	fi

# What waits for no processor leaves it to what does: the gates run beside each other.
.PHONY: test
test: env
	@$(MAKE) --no-print-directory -j2 static dynamic

.PHONY: static
static:
	"$(PY)" -m ruff format --check .
	"$(PY)" -m ruff check .
	"$(PY)" -m mypy --strict p2pstore

.PHONY: dynamic
dynamic:
	"$(PY)" -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -q --durations=10 -rs $(PYTEST)

.PHONY: format
format: env
	"$(PY)" -m ruff format .
	"$(PY)" -m ruff check --fix .

.PHONY: demo
demo: env
	@"$(PY)" -m p2pstore demo $(DEMO)

.PHONY: bench
bench: env
	@"$(PY)" -m tests.bench --size $(SIZE) $(BENCH)

.PHONY: simulate
simulate: env
	@"$(PY)" -m tests.simulate --plots tests/simulate $(SIMULATE)

.PHONY: faults
faults: env
	@"$(PY)" -m tests.faults $(FAULTS)

# A wheel, so that nothing of the installed program is linked to this checkout; built in an
# environment with nothing but the builder, since who installs needs no linters and no tests.
.PHONY: install
install:
	@set -eu; \
	app="$${XDG_DATA_HOME:-$$HOME/.local/share}/p2pstore-app"; \
	bin="$$HOME/.local/bin"; \
	sh .ci/env.sh build/env .ci/build.lock; \
	rm -rf build/wheel; \
	build/env/bin/python $(PIP) wheel $(LOCKED) --no-build-isolation --wheel-dir build/wheel .; \
	sh .ci/env.sh "$$app" deploy/requirements.lock; \
	"$$app/bin/python" $(PIP) install $(LOCKED) --force-reinstall build/wheel/p2pstore-*.whl; \
	mkdir -p "$$bin"; \
	ln -sf "$$app/bin/p2pstore" "$$bin/p2pstore"; \
	"$$bin/p2pstore" --version; \
	echo "Installed as $$bin/p2pstore"; \
	case ":$$PATH:" in \
	    *":$$bin:"*) ;; \
	    *) if grep -qs '\.local/bin' "$$HOME/.profile"; then \
	        echo "It is not in your PATH yet, but after the next login; until then:  PATH=\"$$bin:\$$PATH\""; \
	    else \
	        echo "It is not in your PATH yet; add this line to ~/.profile:  PATH=\"\$$HOME/.local/bin:\$$PATH\""; \
	    fi ;; \
	esac; \
	if systemctl --user --quiet is-active p2pstore.service 2>/dev/null; then \
	    echo 'The node that runs is the former program still:  systemctl --user restart p2pstore'; \
	else \
	    echo 'Next:  p2pstore service install    and then    p2pstore add-folder DIR'; \
	fi

.PHONY: uninstall
uninstall:
	@set -eu; \
	app="$${XDG_DATA_HOME:-$$HOME/.local/share}/p2pstore-app"; \
	if grep -qsF -- "$$app/" /etc/systemd/system/p2pstore@.service; then \
	    echo "The system's service runs this program; first:  sudo $$app/bin/p2pstore service uninstall --system" >&2; \
	    exit 1; \
	fi; \
	if [ -x "$$app/bin/p2pstore" ]; then \
	    "$$app/bin/p2pstore" service uninstall; \
	    "$$app/bin/p2pstore" desktop remove; \
	fi; \
	rm -rf -- "$$app"; \
	rm -f -- "$$HOME/.local/bin/p2pstore"; \
	echo 'The program is removed; the store and every .f file are untouched.'

# pip itself is in the lock; its wheel in .ci/ must be the locked version.
.PHONY: lock
lock:
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
	    --no-header --upgrade --extra dev --extra uvloop pyproject.toml -o .ci/requirements.lock
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
	    --no-header -c .ci/requirements.lock --extra png --extra s3 --extra uvloop \
	    pyproject.toml -o deploy/requirements.lock
	sed -n 's/^requires = \["\(.*\)"\]$$/\1/p' pyproject.toml | \
	    $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
	    --no-header -c .ci/requirements.lock - -o .ci/build.lock
	@"$(PY)" $(PIP) download $(LOCKED) -d .ci "$$(sed -n 's/^\(pip==[^ ]*\) .*/\1/p' .ci/requirements.lock)"
	@echo 'If a newer pip came, remove the older wheel from .ci/.'

.PHONY: clean
clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
