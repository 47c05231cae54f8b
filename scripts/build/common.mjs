import { chmod, mkdir, rename, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';

export const COMMON = {
  bundle: true,
  platform: 'node',
  target: 'node20.19',
  logLevel: 'warning',
  keepNames: true,
};

/** Puts a finished file in place by rename, so that a program started meanwhile never reads half of it. */
export async function putInPlace(path, contents, { mode = 0o644 } = {}) {
  const temporary = `${path}.${process.pid}.tmp`;
  await mkdir(dirname(path), { recursive: true });
  await writeFile(temporary, contents);
  await chmod(temporary, mode);
  await rename(temporary, path);
}
