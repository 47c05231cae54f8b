import { createRequire } from 'node:module';
import { runInThisContext } from 'node:vm';
import type { Verdict } from './run-seed.ts';

export type RunSeed = (seed: number, o?: { isTraced?: boolean }) => Promise<Verdict>;

/** The bundle as a function of this process. One history at a time. */
export function load(text: string): RunSeed {
  const made: { exports: { runSeed?: RunSeed } } = { exports: {} };
  // `any` by the types of node:vm; the text is the function that is put around it here.
  const define = runInThisContext(`(function (require, module, exports) {${text}\n})`) as (...o: unknown[]) => void;
  define(createRequire(import.meta.url), made, made.exports);
  if (made.exports.runSeed === undefined) throw new Error('the bundle has no runSeed');
  return made.exports.runSeed;
}
