# make demo: from images to a promoted denoiser.   make test: everything that is not slow and needs no GPU.
PYTHON ?= python3.11
VENV := .venv
STAMP := $(VENV)/.installed
# Recipes name what they run relative to this folder, whose path may have any character; DVC's stages look in PATH.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

# An environment that was copied or moved with its folder would run the code of the old one: it is installed again.
INSTALLED_AT := $(file <$(STAMP))
.PHONY: $(if $(INSTALLED_AT),$(if $(subst /$(CURDIR)/,,/$(INSTALLED_AT)/),$(STAMP)))

# One thread a process: the tests run side by side, and none is long enough for more.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses logical --maxprocesses 4

.PHONY: demo test smoke test-slow test-cluster test-gpu install lint clean

demo: install
	$(VENV)/bin/denoise demo

test: install debian
	$(PYTEST) -p tests.core_only tests/denoise
	$(PYTEST) --dist loadgroup --no-loadscope-reorder --ignore tests/denoise

# What shows in about a minute whether the whole holds together, without services: for work in progress.
smoke: install
	$(PYTEST) -m "smoke and not (slow or gpu or cluster)"

test-slow: install debian
	$(VENV)/bin/python -m pytest -m slow

# Hosts are network namespaces; on some of them `ray up` starts Ray over ssh.
HOSTS := iproute2 postgresql openssh-server openssh-client rsync slurm-wlm munge
test-cluster: install
	@command -v ip >/dev/null && command -v rsync >/dev/null && ls /usr/sbin/sshd /usr/sbin/slurmctld /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || test "$$(id -u)" != 0 || { \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(HOSTS) >/dev/null; }
	$(VENV)/bin/python -m pytest -m cluster

# Without a GPU they skip; `DENOISE_TEST_DEVICE=cpu make test-gpu` tries the tests themselves on a CPU.
test-gpu: install
	$(VENV)/bin/python -m pytest -m gpu tests/denoise

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(VENV)/bin/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true # where pip does not: every process starts faster
	pwd -P > $@

# The browser of the page tests, and PostgreSQL for those of sweeps; without root those tests skip and say so.
PACKAGES := chromium chromium-driver fonts-dejavu-core postgresql
.PHONY: debian
debian:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null && ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES) >/dev/null; \
	} || echo "no Chromium or PostgreSQL here: the tests that need them will skip"

lint: install
	$(VENV)/bin/pre-commit run --all-files

clean:
	rm -rf build dist report evaluation registered models champion.json
