#!/bin/sh
# Runs the project's own commands; the first one makes .venv, which takes about 10 seconds.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")"

usage() {
  cat <<'END'
Usage: sh run.sh COMMAND [ARGUMENT...]

  demo     batches, workers and a private server, live in this terminal
  test     the tests; arguments go to pytest
  bench    the benchmarks, beside celery-batches: 20 minutes, with --quick three
  oldest   tests with the oldest Celery and redis-py that are supported
  servers  the tests of the scripts on Valkey 9.1 and Redis 8.2, 7.0 (if it is on the PATH) and 6.2
  mutants  breaks the code in 430 ways, and shows which test catches each: two hours
  full     all that is too long for each change, or the parts of it that are named: hours
  check    linters, types, layers, docker-compose.yml and the wheel

They need Python 3.10 or later ($PYTHON, else one on the PATH) and, the first time, PyPI.
END
}

venv=.venv
constraints=constraints.txt

fail() {
  echo "run.sh: $*" >&2
  exit 1
}

# A pyenv shim is on the PATH even where its Python is not: only running one tells.
find_python() {
  for python in "${PYTHON:-python3}" python3 python3.14 python3.13 python3.12 python3.11 python3.10
  do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
      return
    fi
  done
  fail 'no Python 3.10 or later found: install one, or name it in $PYTHON'
}

make_venv() {
  find_python
  if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv --clear "$venv"
  else
    "$python" -m pip --version >/dev/null 2>&1 ||
      fail "$python has neither ensurepip nor pip: install python3-venv or python3-pip"
    "$python" -m venv --clear --without-pip "$venv"
    "$python" -m pip --python "$venv/bin/python" install -qq pip
  fi
}

# need EXTRA: $venv has the project with that extra, as pyproject.toml and $constraints say now.
need() {
  export PIP_DISABLE_PIP_VERSION_CHECK=1
  wanted="$(cat pyproject.toml "$constraints" | cksum) $PWD"
  if [ "$(cat "$venv/$1.installed" 2>/dev/null)" = "$wanted" ] &&
    "$venv/bin/python" -c '' 2>/dev/null
  then
    return
  fi
  echo "run.sh: installing into $venv" >&2
  "$venv/bin/python" -c 'import pip' 2>/dev/null || make_venv
  "$venv/bin/python" -m pip install -qq -c "$constraints" -e ".[$1]" ||
    fail 'the installation failed: see above'
  echo "$wanted" >"$venv/$1.installed"
}

step() {
  echo "== $*"
  "$@"
}

check() {
  PATH="$PWD/.venv/bin:$PATH"
  step ruff check --quiet .
  step ruff format --check .
  step mypy
  step lint-imports --no-logo
  step check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
  step python .ci/check_wheel.py
}

command="${1:-}"
[ $# -eq 0 ] || shift
case "$command" in
  demo)
    need demo
    exec .venv/bin/python -m examples.demo "$@"
    ;;
  test)
    need test
    # The whole suite mostly waits, so three files of it run at a time.
    [ $# -gt 0 ] || set -- -n 3 --dist loadfile
    exec .venv/bin/python -m pytest "$@"
    ;;
  bench)
    need test
    exec .venv/bin/python -m benchmarks "$@"
    ;;
  oldest)
    venv=.venv-oldest
    constraints=.venv-oldest.txt
    grep -Ev '^(celery|kombu|redis)==' constraints.txt >"$constraints"
    printf '%s\n' celery==5.5.0 redis==5.2.0 >>"$constraints"
    need test
    exec "$venv/bin/python" -m pytest -n 3 --dist loadfile tests/fundamentals tests/unit tests/lua \
      tests/integration/test_connection.py tests/integration/test_main_job.py \
      tests/integration/test_producer.py tests/integration/test_results.py "$@"
    ;;
  servers)
    need test
    exec .venv/bin/python -m tests.servers "$@"
    ;;
  mutants)
    need test
    exec .venv/bin/python -m tests.mutants "$@"
    ;;
  full)
    need test
    exec .venv/bin/python -m tests.full "$@"
    ;;
  check)
    need test
    check
    ;;
  help | --help | -h)
    usage
    ;;
  *)
    usage >&2
    exit 2
    ;;
esac
