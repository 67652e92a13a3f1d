#!/usr/bin/env bash
# A lesson opened alone on Colab, rehearsed: an environment with Colab's packages, an empty folder,
# and nothing but a published notebook file that fetches this working tree.
#
#     tests/colab/check.sh [FOLDER]       the environment is made in FOLDER/venv and kept
#     LESSON=00 tests/colab/check.sh      another lesson than 01
#     PYTHON=python3.12 tests/colab/check.sh
#
# Needs a network and five minutes.
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

say "Lesson ${LESSON:-01} in an empty folder"
cp notebooks/"${LESSON:-01}"_*.ipynb "$scratch/alone"
cd "$scratch/alone"
env -u PYTHONPATH -u SUBSPACE_ILLUSION_RESULTS SUBSPACE_ILLUSION_STATIC=1 TQDM_DISABLE=1 \
    PYDEVD_DISABLE_FILE_VALIDATION=1 "$python" "$here/run_lesson.py" ./*.ipynb

say "What changed in the environment"
packages > "$scratch/after"
echo "added: $(comm -13 <(names before) <(names after) | tr '\n' ' ')"
echo "changed: $(comm -23 "$scratch/before" "$scratch/after" | tr '\n' ' ')"
kept='^(torch|numpy|pandas|matplotlib|transformers|tokenizers|huggingface[-_]hub)=='
diff <(grep -E "$kept" "$scratch/before") <(grep -E "$kept" "$scratch/after")
echo "as before: $(grep -E "$kept" "$scratch/after" | tr '\n' ' ')"
