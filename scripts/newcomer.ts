// `npm run newcomer`: docs/install.md, typed by a program on two throw-away machines. Prints what a person would see.
import { visit } from './lib/newcomer.ts';
import { ThrowAwayMachine } from './lib/throw-away-machine.ts';

const LIMIT_MS = 60_000;

const cannot = await ThrowAwayMachine.whyNot();
if (cannot !== undefined) {
  process.stdout.write(`newcomer: skipped, a throw-away machine: ${cannot}\n`);
} else {
  const { image, tookMs } = await visit(({ at, typed, printed, tookMs: stepMs }) =>
    process.stdout.write(`\n[${at}] $ ${typed}\n${printed}\n(${(stepMs / 1_000).toFixed(1)} s)\n`),
  );
  process.stdout.write(`\nFrom nothing to ${image} in ${(tookMs / 1_000).toFixed(1)} s (limit 60 s).\n`);
  if (tookMs > LIMIT_MS) process.exitCode = 1;
}
