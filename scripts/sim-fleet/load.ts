import { createRequire } from 'node:module';
import type { Verdict } from './run-seed.ts';

export type RunSeed = (seed: number, o?: { isTraced?: boolean }) => Promise<Verdict>;

/** The bundle as a function of this process. One history at a time. */
export function load(text: string): RunSeed {
  const made: { exports: { runSeed?: RunSeed } } = { exports: {} };
  // esbuild made this text from this repository a moment ago; as a file it would have to be somewhere.
  const define = new Function('require', 'module', 'exports', text) as (...parts: unknown[]) => void;
  define(createRequire(import.meta.url), made, made.exports);
  if (made.exports.runSeed === undefined) throw new Error('the bundle has no runSeed');
  return made.exports.runSeed;
}
