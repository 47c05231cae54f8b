import { createRequire } from 'node:module';
import { bundle } from './sim-fleet/bundle.ts';
import type { Verdict } from './sim-fleet/run-seed.ts';

const text = await bundle();
const module_ = { exports: {} as { runSeed: (seed: number, o?: { isTraced?: boolean }) => Promise<Verdict> } };
new Function('require', 'module', 'exports', text)(createRequire(import.meta.url), module_, module_.exports);
const [from = 1, count = 1] = process.argv.slice(2).map(Number);
const began = process.cpuUsage().user/1000;
for (let seed = from; seed < from + count; seed++) {
  const v = await module_.exports.runSeed(seed, { isTraced: count === 1 });
  if (count === 1) console.log(v.trace?.join('\n'));
  if (count === 1 || v.violations.length) console.log(seed, v.hash, JSON.stringify(v.violations), JSON.stringify(v.tally));
}
console.log('ms per seed', (process.cpuUsage().user/1000 - began) / count);
process.exit(0);
