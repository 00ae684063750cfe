#!/bin/sh
# Runs the preregistered study (experiments/PREREGISTRATION.md), or continues it. It can be killed and started again.
#
#   experiments/study/run.sh CIFAR-10-FOLDER STUDY-FOLDER
#
# CIFAR-10-FOLDER has train/ and test/, each with a folder per class. STUDY-FOLDER, outside of the repository, gets:
#   code/    the repository at the commit of the records in results/study, or at the current one if there are none:
#            all runs are of one commit, whatever happens to the working tree
#   env/     a Python environment with that code and the packages of the repository's .venv
#   grids/   the runs: a folder for each part. Runs with a record in results/study count as done.
# In the background, at idle priority; kill -STOP -PGID pauses it and kill -CONT -PGID continues it:
#   setsid nohup chrt --idle 0 experiments/study/run.sh … >study.log 2>&1 &
set -eu
[ $# -eq 2 ] || { sed -n 2,4p "$0" >&2; exit 2; }
repository=$(cd "$(dirname "$0")/../.." && pwd)
images=$(realpath "$1")
mkdir -p "$2"
study=$(realpath "$2")
installed=$repository/.venv/bin/python
jobs=$(nproc)
export OMP_NUM_THREADS=1 # a run's numbers must not depend on how many cores there are

if [ ! -e "$study/ready" ]; then
    commit=$(cat "$repository/results/study/commit" 2>/dev/null || git -C "$repository" rev-parse HEAD)
    rm -rf "$study/code" "$study/env"
    git clone --quiet --no-checkout "$repository" "$study/code"
    git -C "$study/code" checkout --quiet --detach "$commit"
    "$installed" "$study/code/experiments/subset.py" "$images" "$study/code/data/cifar10-10k" --per-class 1000
    # The kernels of that commit: later ones have another interface. git ignores or does not count these files.
    cmake -S "$study/code" -B "$study/build"
    cmake --build "$study/build" --parallel
    cp "$study/build"/libfggp_*.so "$study/code/src/fggp/"
    installed_packages=$("$installed" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # The editable installation of the repository would come before PYTHONPATH, so the environment is a new one.
    "$installed" -m venv --without-pip "$study/env"
    packages=$("$study/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf '%s\n' "$study/code/src" "$installed_packages" >"$packages/study.pth"
    touch "$study/ready"
fi

cd "$study/code"
python=$study/env/bin/python
"$python" - <<'CHECK'
from pathlib import Path
import fggp.native
from fggp.lab.base.machine import source_commit

assert Path(fggp.__file__).is_relative_to(Path.cwd()), f"the code would be that in {fggp.__file__}"
assert not source_commit().endswith("-dirty"), "the copy of the code was changed"
fggp.native.load()
print("commit", source_commit(), flush=True)
CHECK

for part in A D B E C; do
    grid=$study/grids/$part
    if [ ! -e "$grid" ] && [ -e "$repository/results/study/$part/records.jsonl" ]; then
        mkdir -p "$grid"
        cp "$repository/results/study/$part/grid.json" "$repository/results/study/$part/records.jsonl" "$grid"
    fi
    # A run that fails is tried once more, with the same seed; if it fails again, the others go on.
    for attempt in 1 2; do
        echo "part $part, attempt $attempt, $(date --utc +%FT%TZ)"
        if "$python" -m fggp grid "experiments/study/$part.toml" --out "$grid" --jobs "$jobs"; then break; fi
    done
done
