#!/bin/sh
# Packs what `npm run test:gpu` needs for a GPU machine that has no Node and reaches no package registry.
#
#   scripts/pack-gpu-tests.sh [ARCHIVE]        here; default dist/gpu-tests.tar.xz, about 50 MB
#   tar xJf gpu-tests.tar.xz && cd gantry-gpu-tests && ./run-gpu-tests    there; needs python3 and the NVIDIA driver
#
# GANTRY_RECORD_GOLDEN=1 ./run-gpu-tests also writes what its nvidia-smi prints to tests/golden/nvidia-smi/real-*.txt.
set -eu
cd "$(dirname "$0")/.."
archive=$(realpath -m "${1:-dist/gpu-tests.tar.xz}")
node scripts/build.mjs
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT INT TERM
root=$stage/gantry-gpu-tests
mkdir "$root"
cp -L "$(node -p process.execPath)" "$root/node"
strip "$root/node" 2> /dev/null || true
cp package.json tsconfig.json vitest.config.ts "$root"
# Everything but what only checks and builds.
tar -c --exclude='node_modules/typescript' --exclude='node_modules/@typescript-eslint' --exclude='node_modules/typescript-eslint' \
  --exclude='node_modules/eslint*' --exclude='node_modules/@eslint*' --exclude='node_modules/prettier' --exclude='node_modules/esbuild' \
  --exclude='node_modules/@esbuild' --exclude='node_modules/fast-check' --exclude='*.map' \
  agent bridge shared scripts tests dist/gantry-agent.mjs dist/gantry.cjs dist/sim node_modules | tar -x -C "$root"
cat > "$root/run-gpu-tests" << 'END'
#!/bin/sh
cd "$(dirname "$0")"
PATH=$PWD:$PATH
export PATH
exec ./node node_modules/vitest/vitest.mjs run --project gpu "$@"
END
chmod +x "$root/run-gpu-tests"
tar -cJf "$archive" -C "$stage" gantry-gpu-tests
ls -lh "$archive"
