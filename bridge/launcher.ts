import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { constants, Script } from 'node:vm';

/** The finished program beside this file, and what V8 compiled of it; scripts/build/bridge.mjs puts the names in. */
declare const PROGRAM: string;
declare const COMPILED: string;
/** What Node calls a CommonJS module with. */
type Program = (
  exports: object,
  load: NodeJS.Require,
  module: { exports: object },
  filename: string,
  dirname: string,
) => void;

// Runs the program with the code that the build compiled: a client waits for its start, and compiling is a third of that.
// V8 refuses what another version of itself has made; then it compiles as ever, and the start only takes longer.
const filename = join(__dirname, PROGRAM);
/** For the build, which keeps what was compiled in a first run. */
export const script = new Script(readFileSync(filename, 'utf8'), {
  filename,
  cachedData: compiledCode(join(__dirname, COMPILED)),
  importModuleDynamically: constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
});
const program = script.runInThisContext() as Program; // what a script gives is `any` by its own types
program({}, require, { exports: {} }, filename, dirname(filename));

function compiledCode(path: string): Buffer | undefined {
  try {
    return readFileSync(path);
  } catch {
    return undefined; // only faster with it
  }
}
