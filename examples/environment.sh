# Sourced by quickstart.sh and tests/run.sh: makes the virtual environment that both share.
#
#   make_environment            installs the package
#   make_environment dev        and the tools of its tests
#
# The folder is .venv, or the one that PS4PRO_VENV names. It is installed anew only when
# pyproject.toml has changed since.

make_environment() {
    local extras="${1:-}"
    local project venv wanted stamp
    project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    venv="${PS4PRO_VENV:-$project/.venv}"
    local python="${PYTHON:-python3}"
    if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))'; then
        echo "Python 3.10 to 3.12 is needed, $("$python" --version) found; set PYTHON to another" >&2
        return 1
    fi
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    stamp="$venv/.ps4pro-installed${extras:+-$extras}"
    # The project's place is part of it: an editable install points there.
    wanted=$( (cat "$project/pyproject.toml"; echo "$project") | "$python" -c \
        'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
    # An environment with the tools of the tests has all that the package alone needs.
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] &&
        [ "$(cat "$venv/.ps4pro-installed-dev" 2>/dev/null)" != "$wanted" ]; then
        echo "Installing into $venv (about 3 minutes and 8 GB the first time)"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            --editable "$project${extras:+[$extras]}"
        echo "$wanted" > "$stamp"
    fi
    export PATH="$venv/bin:$PATH"
    # Threads that wait spin by default; two pools of them slow each other down.
    export OMP_WAIT_POLICY=passive
}
