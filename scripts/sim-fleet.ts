// npm run sim:fleet -- [--seeds N] [--from N] [--seed N] [--mutation NAME] [--threads N] [--json]
// What it is: scripts/sim-fleet/README.md. Exit code 1 when a promise was broken.
import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';
import { bundle } from './sim-fleet/bundle.ts';
import { load } from './sim-fleet/load.ts';
import { MUTATIONS } from './sim-fleet/mutations.ts';
import { runSeeds } from './sim-fleet/pool.ts';
import { Summary } from './sim-fleet/summary.ts';

/** One broken promise is enough to work on; the others are mostly the same one. */
const BROKEN_SHOWN = 10;

const { values } = parseArgs({
  options: {
    seeds: { type: 'string', default: '10000' },
    from: { type: 'string', default: '1' },
    seed: { type: 'string' },
    mutation: { type: 'string' },
    threads: { type: 'string', default: String(availableParallelism()) },
    json: { type: 'boolean', default: false },
  },
});

const planted = MUTATIONS.filter(({ name }) => name === values.mutation);
if (values.mutation !== undefined && planted.length === 0) {
  const names = MUTATIONS.map(({ name, caughtBy }) => `  ${name} (${caughtBy})`).join('\n');
  process.stderr.write(`There is no mutation ${values.mutation}. There are:\n${names}\n`);
  process.exit(2);
}
const text = await bundle(planted);
process.exitCode = values.seed === undefined ? await many() : await one(Number(values.seed));

async function one(seed: number): Promise<number> {
  const { hash, violations, trace, tally } = await load(text)(seed, { isTraced: true });
  process.stdout.write(`${(trace ?? []).join('\n')}\n`);
  process.stdout.write(`${JSON.stringify({ seed, hash, tally, violations }, null, 1)}\n`);
  return violations.length === 0 ? 0 : 1;
}

async function many(): Promise<number> {
  const first = Number(values.from);
  const seeds = Array.from({ length: Number(values.seeds) }, (_, at) => first + at);
  const summary = new Summary();
  const startedMs = performance.now();
  await runSeeds(text, {
    seeds,
    threads: Math.max(1, Number(values.threads)),
    onVerdict: (verdict) => {
      summary.add(verdict);
      return summary.broken.length < BROKEN_SHOWN;
    },
  });
  const tookMs = performance.now() - startedMs;
  const said = values.json ? JSON.stringify(summary.json(tookMs), null, 1) : summary.text(tookMs);
  process.stdout.write(`${said}\n`);
  return summary.broken.length === 0 ? 0 : 1;
}
