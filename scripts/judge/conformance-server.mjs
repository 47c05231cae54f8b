// Builds tests/conformance/server.ts into dist/conformance-server.cjs, as the bridge is built. It is not shipped.
import { build } from 'esbuild';
import { COMMON, LESS_ZOD, putInPlace, SMALL } from '../build/common.mjs';

export async function buildConformanceServer(path = 'dist/conformance-server.cjs') {
  const { outputFiles } = await build({
    ...COMMON,
    ...SMALL,
    plugins: LESS_ZOD,
    format: 'cjs',
    external: ['sharp'],
    entryPoints: ['tests/conformance/server.ts'],
  });
  await putInPlace(path, outputFiles[0].contents);
  return path;
}
