#!/usr/bin/env bash
# Copies the broker's jars into libs/ beside this file, through Maven. Does nothing when they are there.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
compgen -G "$here/libs/kafka_*.jar" >/dev/null && exit 0
command -v mvn >/dev/null || { echo "fetch.sh: Maven is needed (Debian: maven)" >&2; exit 2; }

# Filled beside and then renamed: a download that breaks off leaves nothing that looks complete.
rm -rf "$here/libs.part"
mvn --batch-mode --quiet --file "$here/pom.xml" dependency:copy-dependencies \
  -DincludeScope=runtime -DoutputDirectory="$here/libs.part"
rm -rf "$here/libs"
mv "$here/libs.part" "$here/libs"
