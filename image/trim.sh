#!/bin/sh
# Takes what no program reads out of an environment: type stubs, tests of libraries, stale byte code. usage: trim.sh FOLDER
set -eu
find "$1/lib" -type d \( -name __pycache__ -o -name tests -o -name test \) -prune -exec rm -rf {} +
find "$1/lib" -type f \( -name '*.pyi' -o -name '*.c' -o -name '*.pyx' -o -name '*.h' \) -delete
