#!/usr/bin/env bash
# A lesson opened alone on Colab, rehearsed: an environment with Colab's packages, an empty folder,
# and nothing but a published notebook file that fetches this working tree.
#
#     tests/colab/check.sh [FOLDER]       the environment is made in FOLDER/venv and kept
#     LESSON="00 03" tests/colab/check.sh     other lessons than 01, each in Colab's packages alone
#     PYTHON=python3.12 tests/colab/check.sh
#
# Needs a network and five minutes, and more for a longer lesson.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
folder=$(realpath -m "${1:-$scratch}")
python=$folder/venv/bin/python

say() { printf '\n== %s\n' "$*"; }

# Every package and version, sorted.
packages() { "$python" -m pip list --format=freeze --disable-pip-version-check | sort; }

# The names alone, of the list before or after.
names() { cut -d= -f1 "$scratch/$1" | sort; }

say "Colab's packages, in $folder/venv"
if [ -e "$folder/venv" ]; then
    echo "$folder/venv is there already: name another folder." >&2
    exit 1
fi
mkdir -p "$folder"
"${PYTHON:-python3}" -m venv "$folder/venv"
"$python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
packages > "$scratch/before"

say "This working tree as a published repository"
mkdir "$scratch/tree" "$scratch/alone"
cd "$root"
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    if [ -e "$file" ]; then printf '%s\0' "$file"; fi  # not those that were deleted
done | tar --null --files-from=- --create --file=- | tar -x -C "$scratch/tree"
cd "$scratch/tree"
git init --quiet
git add --all
git -c user.name=check -c user.email=check@example.org commit --quiet --message "The working tree"
git clone --quiet --bare . "$scratch/origin.git"
"$python" -m tools.publish --repo "$scratch/origin.git"

kept='^(torch|numpy|pandas|matplotlib|transformers|tokenizers|huggingface[-_]hub)=='

# One lesson, and what it changed in the environment; what it added is removed for the next.
check() {
    say "Lesson $1 in an empty folder"
    mkdir "$scratch/alone/$1"
    cp notebooks/"$1"_*.ipynb "$scratch/alone/$1"
    (cd "$scratch/alone/$1" &&
        env -u PYTHONPATH -u SUBSPACE_ILLUSION_RESULTS SUBSPACE_ILLUSION_STATIC=1 TQDM_DISABLE=1 \
            PYDEVD_DISABLE_FILE_VALIDATION=1 "$python" "$here/run_lesson.py" ./*.ipynb)

    say "What lesson $1 changed in the environment"
    packages > "$scratch/after"
    added=$(comm -13 <(names before) <(names after) | tr '\n' ' ')
    echo "added: $added"
    echo "changed: $(comm -23 "$scratch/before" "$scratch/after" | tr '\n' ' ')"
    diff <(grep -E "$kept" "$scratch/before") <(grep -E "$kept" "$scratch/after")
    echo "as before: $(grep -E "$kept" "$scratch/after" | tr '\n' ' ')"
    # shellcheck disable=SC2086  # names, one word each
    [ -z "$added" ] || "$python" -m pip uninstall --yes --quiet $added
}

for lesson in ${LESSON:-01}; do check "$lesson"; done
