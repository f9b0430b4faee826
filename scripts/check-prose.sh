#!/bin/sh
# check-prose.sh: checks the prose of comments and documents, as far as a machine can.
#
#   scripts/check-prose.sh             checks everything below the folders in `checked`
#   scripts/check-prose.sh PATH…       checks only these files and folders
#
# A line of prose has at most 100 columns. No sentence uses "who", "whoever" or "his": name
# the actor instead. Code, tables, diagrams and lines with an address may be longer.
#
# `exempt` lists files whose prose is made or fixed elsewhere: pages made from the code, migrations
# whose checksums are in databases, and this file, which names the words.
set -eu
cd "$(dirname "$0")/.."

checked="README.md CHANGELOG.md docs bench crates worker tests scripts test up justfile .ci deploy examples fuzz"
exempt=":!docs/SETTINGS.md :!docs/METRICS.md :!crates/index/migrations/*/000[1-4]* :!scripts/check-prose.sh"

# shellcheck disable=SC2086 # one word for each path
[ $# -gt 0 ] || set -- $checked $exempt
git ls-files -- "$@" |
  grep -E '\.(rs|sql|md|sh|py|toml|ya?ml)$|(^|/)(Containerfile|run|make|test|up|justfile)$' |
  grep -Ev '/(data|corpus|golden)/.*(\.nar|\.ls)$' |
  LC_ALL=C xargs awk '
    function report(what) { printf "%s:%d: %s: %s\n", FILENAME, FNR, what, $0; bad = 1 }
    FNR == 1 {
      fenced = 0
      markdown = FILENAME ~ /\.md$/
      marker = FILENAME ~ /\.rs$/ ? "^[ \t]*//[/!]?( |$)" : FILENAME ~ /\.sql$/ ? "^[ \t]*--( |$)" : "^[ \t]*#( |$)"
    }
    {
      if (markdown) text = $0
      else if (match($0, marker)) text = substr($0, RLENGTH + 1)
      else next
    }
    text ~ /^ *```/ { fenced = !fenced; next }
    fenced { next }
    tolower(text) ~ /(^|[^a-z_`])(who|whoever|his)([^a-z_`]|$)/ { report("name the actor") }
    text ~ /^ *\|/ || text ~ /:\/\// || text ~ /\]\(/ || text ~ /^   / || text ~ /[\342][\224\225]/ { next }
    {
      # A character is counted by its first byte.
      width = $0
      gsub(/[\200-\277]/, "", width)
      if (length(width) > 100) report("over 100 columns")
    }
    END { exit bad }
  '
